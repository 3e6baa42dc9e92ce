"""Disks that fill up, forbid or end: exit 3 with the file's name, nothing at the final path, and the same command works afterwards."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ended, every_command, litter, noise, write_raster

from rsdistill.errors import SceneError
from rsdistill.geo import opening
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Window

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and permissions")
OUTPUTS = ("m.tif", "m.gpkg", "m.fgb", "m.geojson", "m.parquet", "m.png")


def predict(world, out):
    return ["predict", world.scene, "--work", world.work, "--out", out, "-q"]


@pytest.fixture
def file_limit():
    """Limit the size of files that this process writes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_that_may_not_grow_is_refused_whole(world, tmp_path, file_limit, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    whole = ended(*predict(world, tmp_path / "whole" / name))
    assert whole.code == 0, whole.err
    largest = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    for share in (0.0, 0.02, 0.3, 0.7):
        file_limit(int(share * largest))
        run = ended(*predict(world, tmp_path / "m" / name))
        file_limit(resource.RLIM_INFINITY)
        if run.code == 0:
            continue
        assert run.code == 3, run.err
        assert run.err.count("\n") == 1
        assert run.line.endswith(")")
        assert not (tmp_path / "m" / name).exists()
        assert [left for left in litter(tmp_path) if not left.endswith(".journal")] == []
    again = ended(*predict(world, tmp_path / "m" / name), "--overwrite")
    assert again.code == 0, again.err
    assert litter(tmp_path) == []


def test_tiles_on_a_disk_that_takes_no_more(world, tmp_path, file_limit):
    arguments = ["tile", world.scene, "--labels", world.labels, "--classes", world.classes, "--tile", 64, "--out", tmp_path / "tiles", "-q"]
    for size in (0, 1000, 10_000, 60_000, 100_000):
        file_limit(size)
        run = ended(*arguments)
        file_limit(resource.RLIM_INFINITY)
        assert run.code == 3, (size, run.err)
        assert run.err.count("\n") == 1
        assert not (tmp_path / "tiles").exists()
        assert litter(tmp_path) == []
    assert ended(*arguments).code == 0


def test_training_on_a_disk_that_takes_no_more(world, tmp_path, file_limit):
    out = tmp_path / "s.safetensors"
    train = ["distill", "--work", world.work, "--method", "ce", "--student", "linear", "--steps", 2, "--batch", 1, "--out", out, "-q"]
    for size in (0, 500, 3000):
        file_limit(size)
        run = ended(*train)
        file_limit(resource.RLIM_INFINITY)
        assert run.code == 3, (size, run.err)
        assert run.err.count("\n") == 1
        assert not out.exists()
        assert [left for left in litter(tmp_path) if not left.endswith(".lock")] == []
    assert ended(*train).code == 0


@pytest.mark.parametrize("name", ["evaluate", pytest.param("export", marks=pytest.mark.slow)])
def test_reports_and_exports_on_a_disk_that_takes_no_more(world, tmp_path, file_limit, name):
    if name == "export":
        pytest.importorskip("onnxscript")
    command, result = every_command(world, tmp_path)[name]
    for size in (0, 200, 1000):
        file_limit(size)
        run = ended(*command)
        file_limit(resource.RLIM_INFINITY)
        assert run.code == 3, (size, run.err)
        assert run.err.count("\n") == 1
        assert not (result / "report.html").exists()
        assert result.is_dir() or not result.exists()
        assert litter(tmp_path) == []
    assert ended(*command, "--overwrite").code == 0


@pytest.mark.parametrize("name", ["m.tif", "m.fgb", "m.geojson"])
def test_a_style_that_cannot_be_kept_is_no_result(world, tmp_path, name):
    """What lies beside a result is there before it."""
    (tmp_path / "m.qml").mkdir()
    run = ended(*predict(world, tmp_path / name))
    assert run.code == 3, run.err
    assert "m.qml" in run.line
    assert not (tmp_path / name).exists()
    assert [left for left in litter(tmp_path) if not left.endswith(".journal")] == []


def mounted(size, command):
    """Run a shell command where ``$DISK`` is a file system of ``size`` bytes, in a mount namespace of its own."""
    script = f'mount -t tmpfs -o size={size} tmpfs "$DISK" && {command}'
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    how = {"capture_output": True, "text": True, "check": False, "env": environment}
    return subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], **how)


@pytest.fixture
def disk(tmp_path):
    """A folder that :func:`mounted` can put a small disk on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    os.environ["DISK"] = str(folder)
    if shutil.which("unshare") is None or mounted(1 << 20, "true").returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    del os.environ["DISK"]


FULL = """
import json, subprocess, sys
from pathlib import Path
from harness import ended, litter
sizes, disk, out, *command = sys.argv[1:]
for size in sizes.split():
    def resized(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    resized(size)
    full, stood = ended(*command), Path(out).exists()
    resized("16m")
    again = ended(*command, "--overwrite")
    print(json.dumps([full, stood, again, litter(Path(disk))]))
    for path in Path(disk).iterdir():
        path.unlink()
"""
"""The same command on disks of several sizes, each time on one that is full and once more when there is room."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk(world, disk, name):
    """Seven sizes of disk: either the whole result or none, and the same command works once there is room."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    sizes, out = (4096, 8192, 16384, 32768, 65536, 131072, 524288), disk / name
    given = [" ".join(map(str, sizes)), disk, out, *predict(world, out)]
    run = mounted("16m", shlex.join([sys.executable, "-c", FULL, *map(str, given)]))
    assert run.returncode == 0, run.stderr
    refused = 0
    for size, line in zip(sizes, run.stdout.splitlines(), strict=True):
        (code, _, err), stood, (again, _, told), hidden = json.loads(line)
        assert (code, stood) in ((3, False), (0, True)), (size, err)
        refused += code == 3
        assert err.count("\n") == (code == 3)
        assert (str(disk) in err) == (code == 3)
        assert (again, hidden) == (0, []), (size, told)
    assert refused > 1


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(world, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    run = ended(*predict(world, tmp_path / "closed" / "m.tif"))
    assert run.code == 3, run.err
    assert "Permission denied" in run.line
    assert list((tmp_path / "closed").iterdir()) == []


def test_a_disk_that_is_read_only(world, disk):
    run = mounted("1m,ro", f'"{sys.executable}" -m rsdistill predict "{world.scene}" --work "{world.work}" --out "$DISK/m.tif" -q')
    assert run.returncode == 3, run.stderr
    assert "Read-only file system" in run.stderr
    assert str(disk) in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_folder_that_is_removed_while_a_map_is_made(world, tmp_path, monkeypatch):
    from rsdistill.inference import mapping

    strips = mapping.strips

    def removing(*args, **options):
        yield next(it := strips(*args, **options))
        shutil.rmtree(tmp_path / "out")
        yield from it

    monkeypatch.setattr(mapping, "strips", removing)
    run = ended(*predict(world, tmp_path / "out" / "m.tif"))
    assert run.code == 3, run.err
    assert "m.tif" in run.line


def test_a_disk_that_fails_for_a_moment_is_asked_again(tmp_path, monkeypatch):
    """Half of the scene is gone when it is read, and back when it is read once more, as on a disk of the network."""
    path = write_raster(tmp_path / "s.tif", noise(height=256, width=256), blockysize=8)
    whole = path.read_bytes()
    with open_scene(path) as scene:
        window = Window(200, 0, 56, 256)
        expected, _ = scene.read(window, (1, 2, 3))
        scene.close()
        scene.read(Window(0, 0, 1, 1), (1,))
        os.truncate(path, len(whole) // 2)
        with monkeypatch.context() as waiting:
            waiting.setattr(opening.time, "sleep", lambda _: path.write_bytes(whole))
            found, valid = scene.read(window, (1, 2, 3))
        assert path.stat().st_size == len(whole)
        assert (found == expected).all()
        assert valid.all()
        os.truncate(path, len(whole) // 2)
        scene.close()
        with pytest.raises(SceneError, match="rows 200 to 255"):
            scene.read(window, (1, 2, 3))


def test_a_scene_that_is_cut_while_it_is_read(world, tmp_path, monkeypatch):
    from rsdistill.geo import scenes

    shutil.copy(world.scene, tmp_path / "s.tif")
    read, seen = scenes.Scene.read, []

    def cutting(self, window, bands):
        seen.append(window)
        if len(seen) == 1:
            os.truncate(tmp_path / "s.tif", 20_000)
        return read(self, window, bands)

    monkeypatch.setattr(scenes.Scene, "read", cutting)
    run = ended("predict", tmp_path / "s.tif", "--work", world.work, "--out", tmp_path / "m.tif", "-q")
    assert run.code == 2, run.err
    assert "s.tif" in run.line
    assert "rows" in run.line
    assert not (tmp_path / "m.tif").exists()
