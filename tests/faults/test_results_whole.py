"""Results whole or not at all: whoever else writes, reads, kills or fails beside them."""

import errno
import platform
import random
import shutil
import signal
import sys
import time

import numpy as np
import pyogrio
import pytest
import rasterio
from harness import (
    HELD,
    SYSTEM_CALLS,
    content,
    ended,
    every_command,
    finish,
    held,
    litter,
    refused_by_the_kernel,
    spawn,
    wait_for,
    write_linear,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and locks")
slow = pytest.mark.slow
QUICK, LONG = ["tile", "predict"], ["train-teacher", "distill", "predict polygons", "evaluate", "export", "compare"]
COMMANDS = [*QUICK, *(pytest.param(name, marks=slow) for name in LONG)]
LOCKING = ["tile", "distill", "predict", *(pytest.param(name, marks=slow) for name in ("train-teacher", "evaluate", "export", "compare"))]


def comparable(name, path):
    """What two runs of a command must agree in: all but files that hold a time or a name."""
    found = content(path)
    if path.suffix == ".gpkg":  # which holds when it was written
        return pyogrio.read_dataframe(path, layer=path.stem).to_wkb().to_dict("list")
    if not isinstance(found, dict):
        return found
    own = {file: one for file, one in found.items() if not file.startswith("tiles.") and file.endswith((".tif", ".safetensors"))}
    return own or {file: one for file, one in found.items() if file == "metrics.json"}


def needs(name):
    if name == "export":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fails_when_it_is_to_keep(world, tmp_path, name):
    """The kernel answers every fsync with EIO: what is not known to be on the disk is no result."""
    if platform.machine() not in SYSTEM_CALLS or sys.platform != "linux":
        pytest.skip("the numbers of system calls are not known here")
    needs(name)
    command, result = every_command(world, tmp_path)[name]
    failing = refused_by_the_kernel(("fsync", "fdatasync"), errno.EIO)
    try:
        process = spawn(*command, preexec_fn=failing)
    except Exception as error:
        pytest.skip(f"no system call can be refused here: {error}")
    run = finish(process)
    assert run.code == 3, run.err
    assert run.err.count("\n") == 1
    assert str(tmp_path) in run.line
    assert run.line.endswith(")")
    assert not result.exists()
    assert [left for left in litter(tmp_path) if not left.endswith(".journal")] == []


@pytest.mark.parametrize("name", LOCKING)
def test_of_two_runs_on_one_output_one_wins_and_the_other_is_told(world, tmp_path, name):
    """The first is stopped in the midst of its writing while the second one tries, and then goes on."""
    needs(name)
    expected, reference = every_command(world, tmp_path / "alone")[name]
    assert ended(*expected).code == 0
    command, result = every_command(world, tmp_path)[name]
    first = spawn(*command, program=("-c", HELD))
    wait_for(first, held(first))
    second = ended(*command)
    assert second.code == 3, second.err
    assert second.err.count("\n") == 1
    assert f"{first.pid}" in second.line
    assert platform.node() in second.line
    first.send_signal(signal.SIGCONT)
    run = finish(first)
    assert run.code == 0, run.err
    assert comparable(name, result) == comparable(name, reference)
    assert litter(tmp_path) == []
    assert ended(*command).code == (2 if name != "compare" else 0)


@slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["tile", "predict polygons", "evaluate", "export", "compare"])
def test_a_killed_run_leaves_nothing_that_looks_like_a_result(world, tmp_path, name):
    """Killed at five moments and then left alone, it ends in what an undisturbed run makes."""
    needs(name)
    expected, reference = every_command(world, tmp_path / "alone")[name]
    start = time.monotonic()
    assert finish(spawn(*expected)).code == 0
    whole, killing = time.monotonic() - start, random.Random(name)
    command, result = every_command(world, tmp_path)[name]
    for _ in range(5):
        process = spawn(*command)
        time.sleep(killing.uniform(0.2, 1.0) * whole)
        process.kill()
        run = finish(process)
        assert run.code in (0, -9), run.err
        complete = {"evaluate": result / "report.html", "compare": result / "report.html"}.get(name, result)
        if run.code == 0 or complete.exists():
            break
    if run.code:  # a result that stands is whole, but the run may have died before it had tidied up
        run = finish(spawn(*command, *(["--overwrite"] if complete.exists() else [])))
        assert run.code == 0, run.err
    assert comparable(name, result) == comparable(name, reference)
    assert litter(tmp_path) == []


def test_a_reader_sees_the_old_map_or_the_new_one(world, tmp_path):
    out = tmp_path / "m.tif"
    write_linear(tmp_path / "other.safetensors", classes=7, seed=5)
    command = ["predict", world.scene, "--out", out, "--overwrite", "--model"]
    assert ended(*command, tmp_path / "other.safetensors").code == 0
    old = out.read_bytes()
    process, seen = spawn(*command, world.work / "student.safetensors"), set()
    while process.poll() is None:
        seen.add(out.read_bytes())
        with rasterio.open(out) as mask:
            assert np.isin(mask.read(1), [1, 2, 3, 4, 5, 6, 7, 255]).all()
    assert finish(process).code == 0
    assert seen - {old, out.read_bytes()} == set()
    assert old != out.read_bytes()


def test_an_output_that_is_a_link_is_replaced_where_it_points(world, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real.tif"
    target.write_bytes(b"an older result")
    (tmp_path / "m.tif").symlink_to(target)
    run = ended("predict", world.scene, "--work", world.work, "--out", tmp_path / "m.tif", "--overwrite", "-q")
    assert run.code == 0, run.err
    assert (tmp_path / "m.tif").is_symlink()
    with rasterio.open(target) as mask:
        assert mask.shape == (256, 256)


def test_a_folder_of_results_is_never_half_replaced(world, tmp_path):
    """A tile set that is made anew stands whole until the new one is: here the new one cannot be made."""
    command, result = every_command(world, tmp_path)["tile"]
    assert ended(*command).code == 0
    before = content(result)
    shutil.copy(world.scene, tmp_path / "s.tif")
    with (tmp_path / "s.tif").open("r+b") as file:
        file.truncate(20_000)
    broken = [tmp_path / "s.tif" if part == world.scene else part for part in command]
    run = ended(*broken, "--overwrite")
    assert run.code == 2, run.err
    assert content(result) == before
    assert litter(tmp_path) == []
