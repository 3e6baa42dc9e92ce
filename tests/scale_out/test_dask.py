"""Dask as the engine: the same bytes, on a cluster that loses workers too."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cases import OPTIONS, holed
from harness import ended, finish, spawn, write_raster

from rsdistill.commands.predict import predict
from rsdistill.errors import ConfigError, MachineError

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'rsdistill[dask]'")
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::UserWarning:distributed.*", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]
SECONDS = 200


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and four workers, processes of their own, as on other machines."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    code = "from distributed.cli.dask_{0} import main; main()"
    scheduler = [sys.executable, "-c", code.format("scheduler"), "--scheduler-file", str(file), "--port", "0", "--no-dashboard"]
    running = [subprocess.Popen(scheduler, **quiet)]
    worker = [
        sys.executable,
        "-c",
        code.format("worker"),
        "--scheduler-file",
        str(file),
        "--nworkers",
        "1",
        "--nthreads",
        "1",
        "--no-dashboard",
    ]
    running += [subprocess.Popen([*worker, "--name", f"w{number}"], **quiet) for number in range(4)]
    with distributed.Client(scheduler_file=str(file), timeout=60) as client:
        client.wait_for_workers(4, timeout=120)
    yield file, running[1:]
    for process in reversed(running):
        process.terminate()
        process.wait(20)


def processes_of(worker):
    """A worker's nanny and the process that it minds."""
    return [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), ("{", "cannot read"), ("{}", "no scheduler"), ("[]", "no scheduler")]
)
def test_a_file_that_names_no_scheduler_is_refused_at_once(case, tmp_path, content, message):
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        predict(case.scene, work=case.work, out=[tmp_path / "m.tif"], engine="dask", scheduler_file=file, **OPTIONS)


def test_a_cluster_of_this_machine_makes_the_same_bytes(case, in_one_piece, folder):
    result = predict(case.scene, work=case.work, engine="dask", workers=2, shard_size=120, **case.products(folder), **OPTIONS)
    assert result.failures == ()
    assert case.bytes_in(folder) == in_one_piece["core"]


def test_two_of_four_workers_may_die(cluster, case, tmp_path):
    file, workers = cluster
    scene = write_raster(tmp_path / "s.tif", holed(1100, 900), nodata=0, tiled=True, blockxsize=256, blockysize=256)
    how = ("--work", case.work, "--tile", 40, "--margin", 8, "--blend", "hann", "--threads", 1)
    assert ended("predict", scene, "--out", tmp_path / "whole.tif", *how).code == 0
    engine = ("--engine", "dask", "--scheduler-file", file, "--shard-size", 200)
    run = spawn("predict", scene, "--out", tmp_path / "m.tif", *how, *engine)
    end = time.monotonic() + SECONDS
    while len(list((tmp_path / ".m.tif.shards").glob("part.*.tif"))) < 3:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    for worker in workers[:2]:
        for process in processes_of(worker):
            process.send_signal(signal.SIGKILL)
    done = finish(run, SECONDS)
    assert done.code == 0, done.err
    assert (tmp_path / "m.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_scheduler_that_is_not_there_is_named(case, folder, monkeypatch):
    from rsdistill.inference import clusters

    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 1)
    how = {"work": case.work, "out": [folder / "m.tif"], "engine": "dask"}
    with pytest.raises(MachineError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9"):
        predict(case.scene, scheduler="tcp://127.0.0.1:9", **how)
    with pytest.raises(ConfigError, match="exclude each other"):
        predict(case.scene, scheduler="tcp://127.0.0.1:9", scheduler_file=Path("s.json"), **how)
