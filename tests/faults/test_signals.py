"""Signals at any moment: nothing half-written stands, and what is resumed is, byte for byte, what an undisturbed run makes."""

import os
import random
import shlex
import signal
import sys
import time
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from harness import HELD, ended, finish, held, litter, place_of, spawn, wait_for, write_raster

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
SIDE = 2560


@pytest.fixture(scope="module", autouse=True)
def signals_as_a_terminal_leaves_them():
    """Who runs the tests under nohup has them ignore SIGHUP, and what they start would do likewise."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.fixture(scope="module")
def large(world, tmp_path_factory):
    """A scene that takes some seconds to map, and its map."""
    folder = tmp_path_factory.mktemp("large")
    pixels = np.random.default_rng(0).integers(0, 255, (3, SIDE, SIDE), np.uint8)
    write_raster(folder / "s.tif", pixels, tiled=True, **place_of(world))
    undisturbed(predict(world, folder / "s.tif", folder / "m.tif"))
    return folder


def undisturbed(command):
    """Run a command to its end."""
    run = finish(spawn(*command))
    assert run.code == 0, run.err


def predict(world, scene, out):
    return ["predict", scene, "--work", world.work, "--out", out, "--tile", 256, "--threads", 1, "-q"]


def train(world, out, steps=400):
    much = ["--steps", steps, "--validate-every", 20, "--batch", 2, "--threads", 1, "-q"]
    return ["distill", "--work", world.work, "--method", "ce", "--student", "linear", "--out", out, *much]


def grown(journal, size):
    def ready():
        with suppress(FileNotFoundError):
            return journal.stat().st_size > size

    return ready


def interrupted(process, number):
    """Send a signal; say how the process ended and how many seconds of processor time it took to."""
    spent, others = sum(psutil.Process(process.pid).cpu_times()[:2]), sum(os.times()[2:4])
    process.send_signal(number)
    run = finish(process)
    return run, sum(os.times()[2:4]) - others - spent


def go_on(line):
    """Run the command that an interrupted one printed."""
    command = line.partition("go on with: rsdistill ")[2].removesuffix(")")
    return finish(spawn(*shlex.split(command)))


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
    wait_for(process, grown(tmp_path / ".m.tif.journal", 200_000))
    run, seconds = interrupted(process, number)
    assert (run.code, run.out) == (code, "")
    assert seconds < 5
    assert not out.exists()
    assert run.err.count("\n") == 1
    again = go_on(run.line)
    assert again.code == 0, again.err
    assert out.read_bytes() == (large / "m.tif").read_bytes()
    assert litter(tmp_path) == []


class Pace(NamedTuple):
    """Seconds that a command takes here and now."""

    whole: float
    work: float
    """Of these, those in which it holds the name of its result: after its imports, and before Python ends."""


def pace(command, out):
    """Run ``command`` to its end."""
    start, process = time.monotonic(), spawn(*command)
    wait_for(process, lambda: holds(process, out))
    begun = time.monotonic()
    wait_for(process, lambda: not holds(process, out))
    work, run = time.monotonic() - begun, finish(process)
    assert run.code == 0, run.err
    return Pace(time.monotonic() - start, work)


def killed_until_done(command, out, killing, attempts, seconds):
    """Start ``command`` again and again, each time killed at a random moment, four times of five while it is at work on ``out``.

    It ends when a run was faster than its killer, or when there were so many attempts. Returns the count of kills, and of those that hit
    a run at work.
    """
    kills = at_work = 0
    while True:
        process = spawn(*command, "--resume", "--overwrite")  # a run that was killed after its result stood would refuse to replace it
        if kills < attempts:
            imported = killing.random() < 0.8
            while imported and process.poll() is None and not holds(process, out):
                time.sleep(0.01)
            time.sleep(killing.uniform(0, seconds.work if imported else seconds.whole))
            process.kill()
        run = finish(process)
        if run.code == 0:
            return np.array([kills, at_work])
        assert run.code == -signal.SIGKILL, run.err
        kills, at_work = kills + 1, at_work + holds(process, out)


def holds(process, out):
    """Whether a process holds, or held when it was killed, the name of its result."""
    with suppress(FileNotFoundError):
        return f"process {process.pid} " in out.with_name(f".{out.name}.lock").read_text()
    return False


@pytest.mark.slow
def test_predict_killed_once_is_resumed_to_the_same_bytes(world, large, tmp_path):
    out = tmp_path / "m.tif"
    process = spawn(*predict(world, large / "s.tif", out))
    wait_for(process, grown(tmp_path / ".m.tif.journal", 300_000))
    process.kill()
    finish(process)
    assert not out.exists()
    run = finish(spawn(*predict(world, large / "s.tif", out), "--resume"))
    assert run.code == 0, run.err
    assert out.read_bytes() == (large / "m.tif").read_bytes()
    assert litter(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_predict_survives_fifty_random_kills(world, large, tmp_path):
    killing, counts, once = random.Random(7), np.zeros(2, int), tmp_path / "once.tif"
    seconds = pace(predict(world, large / "s.tif", once), once)
    while counts[0] < 50:
        out = tmp_path / f"m{counts[0]}.tif"
        counts += killed_until_done(predict(world, large / "s.tif", out), out, killing, 50 - counts[0], seconds)
        assert out.read_bytes() == (large / "m.tif").read_bytes()
        assert litter(tmp_path) == []
    assert counts[1] > 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_training_says_how_to_go_on_and_does(world, tmp_path, number, code):
    out = tmp_path / "b.safetensors"
    undisturbed(train(world, tmp_path / "a.safetensors"))
    process = spawn(*train(world, out))
    wait_for(process, (tmp_path / "b.log.csv").exists)
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
    killing, counts, once = random.Random(7), np.zeros(2, int), tmp_path / "a.safetensors"
    seconds = pace(train(world, once), once)
    while counts[0] < 10:
        out = tmp_path / f"b{counts[0]}.safetensors"
        counts += killed_until_done(train(world, out), out, killing, 10 - counts[0], seconds)
        assert out.read_bytes() == once.read_bytes()
        assert litter(tmp_path) == []
    assert counts[1] > 3


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
    process = spawn(*tile(world, out), program=("-c", HELD))
    wait_for(process, held(process))
    assert any(tmp_path.glob(".tiles.*.part/labels"))
    process.kill()
    finish(process)
    assert not out.exists()
    run = finish(spawn(*tile(world, out)))
    assert run.code == 0, run.err
    assert litter(tmp_path) == []
    for name in ("labels/scene.tif", "context/scene.ctx8.tif", "context/scene.lab8.tif"):
        assert (out / name).read_bytes() == (world.work / "tiles" / name).read_bytes()


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(world, large, tmp_path):
    process = spawn(*predict(world, large / "s.tif", tmp_path / "m.tif"))
    wait_for(process, grown(tmp_path / ".m.tif.journal", 200_000))
    process.send_signal(signal.SIGSTOP)
    wait_for(process, held(process))
    time.sleep(1)
    process.send_signal(signal.SIGCONT)
    run = finish(process)
    assert run.code == 0, run.err
    assert (tmp_path / "m.tif").read_bytes() == (large / "m.tif").read_bytes()


@pytest.mark.slow
def test_a_run_under_nohup_does_not_mind_the_terminal_going(world, large, tmp_path):
    process = spawn(*predict(world, large / "s.tif", tmp_path / "m.tif"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(process, grown(tmp_path / ".m.tif.journal", 200_000))
    process.send_signal(signal.SIGHUP)
    assert finish(process).code == 0


@pytest.mark.slow
def test_no_reader_outlives_a_killed_training(world, tmp_path):
    process = spawn(*train(world, tmp_path / "a.safetensors", steps=100_000), "--workers", 2)
    wait_for(process, (tmp_path / "a.log.csv").exists)
    readers = psutil.Process(process.pid).children(recursive=True)
    assert len(readers) >= 2
    process.kill()
    finish(process)
    assert psutil.wait_procs(readers, timeout=15)[1] == []
