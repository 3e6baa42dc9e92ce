"""Files and folders that stand under their name whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from rsdistill.errors import ConfigError, DiskError, OutputExistsError
from rsdistill.geo.files import _partial, atomic, atomic_folder, hidden, refuse_existing, refuse_existing_folder
from rsdistill.geo.locking import locked


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_whole_with_its_suffix(tmp_path: Path):
    path = tmp_path / "deep" / "mask.tif"
    with atomic(path) as partial:
        assert partial.suffix == ".tif"
        assert partial.parent == path.parent
        assert partial.name.startswith(".")
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert entries(path.parent) == ["mask.tif"]


def test_after_an_error_the_old_file_stands(tmp_path: Path):
    path = tmp_path / "mask.tif"
    path.write_text("old")

    def stop_halfway() -> None:
        with atomic(path) as partial:
            partial.write_text("half")
            partial.with_name(partial.name + ".aux.xml").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_halfway()
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["mask.tif"]


def test_sidecars_of_an_older_raster_go(tmp_path: Path):
    for suffix in ("", ".ovr", ".msk", ".mine"):
        (tmp_path / f"mask.tif{suffix}").touch()
    with atomic(tmp_path / "mask.tif") as partial:
        partial.touch()
    assert entries(tmp_path) == ["mask.tif", "mask.tif.mine"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "mask.tif"
    link.symlink_to(tmp_path / "real" / "mask.tif")
    with atomic(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "mask.tif").read_text() == "new"


def test_what_dead_runs_left_is_swept_and_living_ones_are_spared(tmp_path: Path):
    name = _partial(tmp_path / "mask.tif").name
    dead, living = name.replace(f"-{os.getpid()}.", "-999999999."), name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    for left in (dead, living, dead + ".aux.xml"):
        (tmp_path / left).touch()
    with atomic(tmp_path / "mask.tif") as partial:
        partial.touch()
    assert entries(tmp_path) == sorted([living, "mask.tif"])


def test_a_long_name_still_fits(tmp_path: Path):
    path = tmp_path / ("ü" * 120 + ".tif")
    with atomic(path) as partial:
        partial.write_text("x")
    assert path.read_text() == "x"


@pytest.mark.parametrize("length", [1, 200, 228, 233, 247])
def test_hidden_names_leave_room_for_what_others_add(tmp_path: Path, length: int):
    path = tmp_path / ("o" * length)
    refuse_existing([path], overwrite=False)
    with atomic(path) as partial:
        for one in (path, partial):
            one.with_name(one.name + ".aux.xml").touch()
        hidden(path, ".journal").touch()
        partial.write_text("x")
    assert hidden(path, ".journal") != hidden(tmp_path / ("p" * length), ".journal")
    with pytest.raises(ConfigError, match="too long a name"):
        refuse_existing([tmp_path / ("o" * 248)], overwrite=True)


def test_a_folder_is_replaced_whole(tmp_path: Path):
    folder = tmp_path / "tiles"
    for content in ("first", "second"):
        with atomic_folder(folder) as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / content).write_text(content)
        assert entries(folder / "inner") == [content]

    def stop_halfway() -> None:
        with atomic_folder(folder) as partial:
            (partial / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_halfway()
    assert entries(folder / "inner") == ["second"]
    assert entries(tmp_path) == ["tiles"]


def test_what_cannot_be_written_is_a_disk_error(tmp_path: Path):
    (tmp_path / "file").touch()
    for open_ in (atomic, atomic_folder):
        with pytest.raises(DiskError, match="cannot write") as caught, open_(tmp_path / "file" / "x.tif"):
            pass
        assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_disk_error(tmp_path: Path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DiskError, match="Permission"), atomic(tmp_path / "x.tif") as partial:
        partial.touch()


def test_existing_results_need_permission(tmp_path: Path):
    path = tmp_path / "mask.tif"
    refuse_existing([path], overwrite=False)
    path.touch()
    with pytest.raises(OutputExistsError, match="exists") as caught:
        refuse_existing([path], overwrite=False)
    assert "--overwrite" in caught.value.hint
    refuse_existing([path], overwrite=True)
    with pytest.raises(OutputExistsError, match="is a folder"):
        refuse_existing([tmp_path], overwrite=True)
    with pytest.raises(OutputExistsError, match="not a regular file"):
        refuse_existing([Path("/dev/null")], overwrite=True)


def test_a_foreign_folder_is_never_replaced(tmp_path: Path):
    folder = tmp_path / "photos"
    refuse_existing_folder(folder, False, "tileset.json")
    folder.mkdir()
    refuse_existing_folder(folder, False, "tileset.json")
    (folder / "holiday.jpg").touch()
    with pytest.raises(OutputExistsError, match="not empty"):
        refuse_existing_folder(folder, True, "tileset.json")
    (folder / "tileset.json").touch()
    with pytest.raises(OutputExistsError, match="exists"):
        refuse_existing_folder(folder, False, "tileset.json")
    refuse_existing_folder(folder, True, "tileset.json")
    with pytest.raises(OutputExistsError, match="is a file"):
        refuse_existing_folder(folder / "holiday.jpg", True, "tileset.json")


def test_a_folder_that_failed_takes_its_parents_with_it(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    result = tmp_path / "kept" / "a" / "b" / "c"
    with pytest.raises(KeyError), locked(result), atomic_folder(result):
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]
    with pytest.raises(KeyError), atomic_folder(result):
        raise (result.parent / "other").touch() or KeyError
    assert entries(result.parent) == ["other"]
