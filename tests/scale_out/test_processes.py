"""Worker processes as they really are: the same bytes, and what comes of it when some are killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import rasterio
from cases import holed
from harness import ended, finish, litter, spawn, write_linear, write_raster

from rsdistill.inference.journal import Journal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
SECONDS = 200


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A scene that takes some seconds, and its map made by one process."""
    folder = tmp_path_factory.mktemp("large")
    write_raster(folder / "s.tif", holed(1100, 900), nodata=0, tiled=True, blockxsize=256, blockysize=256, compress="deflate")
    (folder / "work").mkdir()
    write_linear(folder / "work" / "student.safetensors", classes=5)
    run = ended(*command(folder, folder / "whole.tif"))
    assert run.code == 0, run.err
    return folder


def command(folder, out, *more):
    how = ("--work", folder / "work", "--out", out, "--tile", 40, "--margin", 8, "--blend", "hann", "--threads", 1)
    return ("predict", folder / "s.tif", *how, *more)


def started(folder, out, *more, shards):
    """Start a run and return it when so many shards are finished."""
    run = spawn(*command(folder, out, *more))
    kept = out.with_name(f".{out.name}.shards")
    end = time.monotonic() + SECONDS
    while len(list(kept.glob("part.*.tif"))) < shards:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return run, kept


def workers_of(run):
    """The processes that map: children of the one that has loaded the libraries, or, where there is none, of the run."""
    workers = []
    for child in psutil.Process(run.pid).children():
        with suppress(psutil.Error):  # a child may end meanwhile
            started = " ".join(child.cmdline())
            workers += child.children() if "forkserver" in started else [child] if "spawn_main" in started else []
    return workers


def test_a_killed_worker_is_replaced_and_the_map_is_the_same(large, tmp_path):
    run, _ = started(large, tmp_path / "m.tif", "--workers", 2, "--shard-size", 200, shards=2)
    workers_of(run)[0].send_signal(signal.SIGKILL)
    done = finish(run, SECONDS)
    assert done.code == 0, done.err
    assert (tmp_path / "m.tif").read_bytes() == (large / "whole.tif").read_bytes()
    assert litter(tmp_path) == []


def test_a_killed_run_takes_its_workers_along_and_is_gone_on_with(large, tmp_path):
    run, kept = started(large, tmp_path / "m.tif", "--workers", 2, "--shard-size", 200, shards=3)
    workers = workers_of(run)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("part.*.tif")}
    assert not (tmp_path / "m.tif").exists()
    run, kept = started(large, tmp_path / "m.tif", "--workers", 2, "--shard-size", 300, "--resume", shards=len(before) + 1)
    after = {path.name: path.stat().st_mtime_ns for path in kept.glob("part.*.tif")}
    assert {name: after[name] for name in before} == before
    done = finish(run, SECONDS)
    assert done.code == 0, done.err
    assert "shards that an earlier run finished are not made again" in done.err
    assert (tmp_path / "m.tif").read_bytes() == (large / "whole.tif").read_bytes()
    assert litter(tmp_path) == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_at_once_with_its_workers(large, tmp_path, sent, code):
    run, _ = started(large, tmp_path / "m.tif", "--workers", 2, "--shard-size", 1000, "--tta", "d4", shards=0)  # it takes long enough
    end = time.monotonic() + SECONDS
    while len(workers := workers_of(run)) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(run.pid, sent) if sent == signal.SIGINT else run.send_signal(sent)
    done = finish(run, 60)
    assert done.code == code, done.err
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert not (tmp_path / "m.tif").exists()


def test_two_runs_on_one_output_are_told_apart(large, tmp_path):
    with Journal(tmp_path / "m.tif", {}, resume=False):
        second = ended(*command(large, tmp_path / "m.tif", "--workers", 2))
    assert second.code == 3
    assert "is being written by process" in second.line


def test_workers_get_an_accelerator_each(monkeypatch):
    import torch

    from rsdistill.inference.processes import ProcessPool, accelerators
    from rsdistill.inference.workers import Job

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert accelerators("auto") == ("0", "1", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert accelerators("cuda") == ("4", "6", "7")
    assert accelerators("cuda:1") == accelerators("cpu") == ()
    with ProcessPool(2, ("4", "6")) as pool:
        futures = [pool.submit(Job("look", os.getenv, "CUDA_VISIBLE_DEVICES")) for _ in range(40)]
        assert {future.result() for future in futures} <= {"4", "6"}


LOOK = """
from rsdistill.inference.processes import ProcessPool, load_ahead
from rsdistill.inference.workers import Job
if __name__ == "__main__":
    load_ahead(["rsdistill.inference.sharding"])
    with ProcessPool(1) as pool:
        print(pool.submit(Job("look", eval, "(__import__('gc').isenabled(), __import__('gc').get_freeze_count() > 10_000)")).result())
"""


def test_workers_search_for_garbage_but_not_in_what_was_loaded(tmp_path):
    (tmp_path / "look.py").write_text(LOOK)
    run = subprocess.run([sys.executable, tmp_path / "look.py"], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (run.returncode, run.stdout) == (0, "(True, True)\n"), run.stderr


def torn(scene, path):
    """Copy a scene with one of its blocks overwritten."""
    content = bytearray(scene.read_bytes())
    with rasterio.open(scene) as file:
        place, size = (int(file.get_tag_item(f"{name}_3_4", "TIFF", bidx=1)) for name in ("BLOCK_OFFSET", "BLOCK_SIZE"))
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    return path


def test_a_poisoned_shard_is_listed_and_what_the_others_made_is_kept(large, tmp_path):
    scene = torn(large / "s.tif", tmp_path / "s.tif")
    how = ("--work", large / "work", "--tile", 40, "--margin", 8, "--blend", "hann", "--threads", 1, "--workers", 2, "--shard-size", 400)
    bad = finish(spawn("predict", scene, "--out", tmp_path / "m.tif", *how), SECONDS)
    assert bad.code == 6, bad.err
    (line,) = [line for line in bad.err.splitlines() if line.startswith("failed:")]
    assert f"{scene}, shard " in line
    assert "shards of maps that failed are kept" in bad.err
    assert bad.out == ""
    kept = list((tmp_path / ".m.tif.shards").glob("part.*.tif"))
    assert len(kept) > 3
    assert not (tmp_path / "m.tif").exists()
