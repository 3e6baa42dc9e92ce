"""Strips kept on disk: what comes back is what was kept, whatever a crash tore."""

import resource
import signal
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsdistill.errors import DiskError, LockError, SceneError
from rsdistill.inference.blending import Strip
from rsdistill.inference.journal import Journal

HEIGHTS = (3, 1, 5, 2, 4)


def made(seed=0):
    """Five strips whose shares are whole steps of 1/254, as they come back from a file."""
    rng, row, strips = np.random.default_rng(seed), 0, []
    for height in HEIGHTS:
        odds = (rng.integers(0, 255, (4, height, 6)) / np.float32(254)).astype(np.float32)
        odds[:, 0, 0] = np.nan
        strips.append(Strip(row, rng.integers(0, 256, (height, 6)).astype(np.uint8), odds[0], odds))
        row += height
    return strips


def from_row(row):
    return iter([strip for strip in made() if strip.row >= row])


def assert_same(found, strips):
    for one, other in zip(found, strips, strict=True):
        assert one.row == other.row
        for plane, right in zip(one[1:], other[1:], strict=True):
            np.testing.assert_array_equal(plane, right)


def interrupted(path, count, mark="a"):
    """Leave a journal of ``count`` strips behind."""
    with pytest.raises(KeyboardInterrupt):
        run(path, count, KeyboardInterrupt(), mark)


def run(path, count, end, mark="a"):
    with Journal(path, {"mark": mark}, resume=False) as journal:
        found = journal.kept(from_row)
        for _ in range(count):
            next(found)
        raise end


@pytest.mark.parametrize("count", range(1, 6))
def test_a_run_goes_on_after_the_last_strip_that_was_kept(tmp_path, count):
    interrupted(tmp_path / "m.tif", count)
    asked = []
    with Journal(tmp_path / "m.tif", {"mark": "a"}, resume=True) as journal:
        assert journal.rows == sum(HEIGHTS[:count])
        assert_same(list(journal.kept(lambda row: asked.append(row) or from_row(row))), made())
    assert asked == [sum(HEIGHTS[:count])]
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), flip=st.none() | st.floats(0, 0.999))
def test_what_was_torn_or_flipped_is_made_again(tmp_path, share, flip):
    interrupted(tmp_path / "m.tif", 5)
    path = tmp_path / ".m.tif.journal"
    content = bytearray(path.read_bytes())
    if flip is not None:
        content[int(flip * len(content))] ^= 0x10
    path.write_bytes(content[: int(share * len(content))])
    with Journal(tmp_path / "m.tif", {"mark": "a"}, resume=True) as journal:
        assert_same(list(journal.kept(from_row)), made())


@pytest.mark.parametrize(("mark", "resume"), [("b", True), ("a", False)])
def test_another_mark_or_no_wish_to_resume_starts_anew(tmp_path, mark, resume):
    interrupted(tmp_path / "m.tif", 4)
    with Journal(tmp_path / "m.tif", {"mark": mark}, resume=resume) as journal:
        assert journal.rows == 0
        assert_same(list(journal.kept(from_row)), made())


def test_bad_input_leaves_no_journal(tmp_path):
    with pytest.raises(SceneError):
        run(tmp_path / "m.tif", 2, SceneError("torn"))
    interrupted(tmp_path / "m.tif", 0)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_on_one_output_are_told_apart(tmp_path):
    with (
        Journal(tmp_path / "m.tif", {}, resume=False),
        pytest.raises(LockError, match=r"m\.tif is being written by process \d+ on"),
        Journal(tmp_path / "m.tif", {}, resume=False),
    ):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"), Journal(tmp_path / "file" / "m.tif", {}, resume=False):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize("size", [0, 40])
def test_a_disk_that_takes_no_more_is_told_with_the_file_s_name(tmp_path, size):
    """And not once more, without it, when the file is closed over what could not be written."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with (
            pytest.raises(DiskError, match=r"m\.tif\.(journal|lock): File too large"),
            Journal(tmp_path / "m.tif", {}, resume=False) as journal,
        ):
            list(journal.kept(lambda row: iter([Strip(0, np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
