"""Signals at any moment: nothing half-written stands, and what is resumed is, byte for byte, what an undisturbed run makes."""

import os
import random
import shlex
import signal
import sys
import time

import numpy as np
import psutil
import pytest
from harness import ended, finish, litter, place_of, spawn, write_raster

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
SIDE = 1536
SECONDS = 240


@pytest.fixture(scope="module")
def large(world, tmp_path_factory):
    """A scene that takes some seconds to map, and its map."""
    folder = tmp_path_factory.mktemp("large")
    pixels = np.random.default_rng(0).integers(0, 255, (3, SIDE, SIDE), np.uint8)
    write_raster(folder / "s.tif", pixels, tiled=True, **place_of(world))
    run = finish(spawn(*predict(world, folder / "s.tif", folder / "m.tif")), SECONDS)
    assert run.code == 0, run.err
    return folder


def predict(world, scene, out):
    return ["predict", scene, "--work", world.work, "--out", out, "--tile", 256, "--threads", 1, "-q"]


def train(world, out, steps=400):
    much = ["--steps", steps, "--validate-every", 20, "--batch", 2, "--threads", 1, "-q"]
    return ["distill", "--work", world.work, "--method", "ce", "--student", "linear", "--out", out, *much]


def wait_for(process, ready, seconds=SECONDS):
    """Wait until ``ready()`` holds; False where the process ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if ready():
            return True
        time.sleep(0.01)
    return False


def grown(path, size):
    return lambda: path.exists() and path.stat().st_size > size


def interrupted(process, number):
    """Send a signal; say how the process ended and how many seconds of processor time it took to."""
    spent, others = sum(psutil.Process(process.pid).cpu_times()[:2]), sum(os.times()[2:4])
    process.send_signal(number)
    run = finish(process, SECONDS)
    return run, sum(os.times()[2:4]) - others - spent


def go_on(line):
    """Run the command that an interrupted one printed."""
    command = line.partition("go on with: rsdistill ")[2].removesuffix(")")
    return finish(spawn(*shlex.split(command)), SECONDS)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 143, marks=pytest.mark.slow),
    ],
)
def test_predict_says_how_to_go_on_and_does(world, large, tmp_path, number, code):
    out = tmp_path / "m.tif"
    process = spawn(*predict(world, large / "s.tif", out))
    assert wait_for(process, grown(tmp_path / ".m.tif.journal", 200_000))
    run, seconds = interrupted(process, number)
    assert (run.code, run.out) == (code, "")
    assert seconds < 5
    assert not out.exists()
    assert run.err.count("\n") == 1
    again = go_on(run.line)
    assert again.code == 0, again.err
    assert out.read_bytes() == (large / "m.tif").read_bytes()
    assert litter(tmp_path) == []


def killed_until_done(command, killing, attempts):
    """Start ``command`` again and again, each time killed after a random while, until it ends; return how often it was killed."""
    kills = 0
    while True:
        process = spawn(*command, "--resume", "--overwrite")  # a run that was killed after its result stood would refuse to replace it
        if kills < attempts:
            time.sleep(killing.uniform(0, 12))
            kills += process.poll() is None
            process.kill()
        run = finish(process, SECONDS)
        if run.code == 0:
            return kills
        assert run.code == -signal.SIGKILL, run.err


@pytest.mark.slow
def test_predict_killed_once_is_resumed_to_the_same_bytes(world, large, tmp_path):
    out = tmp_path / "m.tif"
    process = spawn(*predict(world, large / "s.tif", out))
    assert wait_for(process, grown(tmp_path / ".m.tif.journal", 300_000))
    process.kill()
    finish(process)
    assert not out.exists()
    run = finish(spawn(*predict(world, large / "s.tif", out), "--resume"), SECONDS)
    assert run.code == 0, run.err
    assert out.read_bytes() == (large / "m.tif").read_bytes()
    assert litter(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_predict_survives_fifty_random_kills(world, large, tmp_path):
    killing, kills = random.Random(7), 0
    while kills < 50:
        out = tmp_path / f"m{kills}.tif"
        kills += killed_until_done(predict(world, large / "s.tif", out), killing, 50 - kills)
        assert out.read_bytes() == (large / "m.tif").read_bytes()
        assert litter(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_training_says_how_to_go_on_and_does(world, tmp_path, number, code):
    undisturbed, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    whole = finish(spawn(*train(world, undisturbed)), SECONDS)
    assert whole.code == 0, whole.err
    process = spawn(*train(world, out))
    assert wait_for(process, (tmp_path / "b.log.csv").exists)
    run, seconds = interrupted(process, number)
    assert (run.code, run.out) == (code, "")
    assert seconds < 5
    assert not out.exists()
    again = go_on(run.line)
    assert again.code == 0, again.err
    for name in (".safetensors", ".last.safetensors"):
        assert (tmp_path / f"b{name}").read_bytes() == (tmp_path / f"a{name}").read_bytes()
    assert not (tmp_path / "b.state.pt").exists()
    assert litter(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_training_survives_ten_random_kills(world, tmp_path):
    undisturbed, killing, kills = tmp_path / "a.safetensors", random.Random(7), 0
    assert finish(spawn(*train(world, undisturbed)), SECONDS).code == 0
    while kills < 10:
        out = tmp_path / f"b{kills}.safetensors"
        kills += killed_until_done(train(world, out), killing, 10 - kills)
        assert out.read_bytes() == undisturbed.read_bytes()
        assert litter(tmp_path) == []


def test_training_that_died_beside_its_finished_model_is_resumed_all_the_same(world, tmp_path):
    out = tmp_path / "s.safetensors"
    short = train(world, out, steps=2)
    assert ended(*short).code == 0
    assert ended(*short, "--resume").code == 2
    (tmp_path / "s.state.pt").write_bytes(b"torn")
    run = ended(*short, "--resume")
    assert run.code == 0, run.err
    assert not (tmp_path / "s.state.pt").exists()


def tile(world, out):
    return ["tile", world.scene, "--labels", world.labels, "--classes", world.classes, "--tile", 64, "--out", out, "-q"]


def test_tile_killed_leaves_no_tile_set_and_its_rerun_is_the_same(world, tmp_path):
    out = tmp_path / "tiles"
    process = spawn(*tile(world, out))
    assert wait_for(process, lambda: any(tmp_path.glob(".tiles.*.part/labels")))
    process.kill()
    finish(process)
    assert not out.exists()
    run = finish(spawn(*tile(world, out)), SECONDS)
    assert run.code == 0, run.err
    assert litter(tmp_path) == []
    for name in ("labels/scene.tif", "context/scene.ctx8.tif", "context/scene.lab8.tif"):
        assert (out / name).read_bytes() == (world.work / "tiles" / name).read_bytes()


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(world, large, tmp_path):
    process = spawn(*predict(world, large / "s.tif", tmp_path / "m.tif"))
    assert wait_for(process, grown(tmp_path / ".m.tif.journal", 200_000))
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    run = finish(process, SECONDS)
    assert run.code == 0, run.err
    assert (tmp_path / "m.tif").read_bytes() == (large / "m.tif").read_bytes()


@pytest.mark.slow
def test_a_run_under_nohup_does_not_mind_the_terminal_going(world, large, tmp_path):
    process = spawn(*predict(world, large / "s.tif", tmp_path / "m.tif"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert wait_for(process, grown(tmp_path / ".m.tif.journal", 200_000))
    process.send_signal(signal.SIGHUP)
    assert finish(process, SECONDS).code == 0


@pytest.mark.slow
def test_no_reader_outlives_a_killed_training(world, tmp_path):
    process = spawn(*train(world, tmp_path / "a.safetensors", steps=100_000), "--workers", 2)
    assert wait_for(process, (tmp_path / "a.log.csv").exists)
    readers = psutil.Process(process.pid).children(recursive=True)
    assert len(readers) >= 2
    process.kill()
    finish(process)
    assert psutil.wait_procs(readers, timeout=15)[1] == []
