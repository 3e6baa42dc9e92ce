"""Training under fire, by the command line: readers that die, memory that ends, numbers that run away, disks that fail for a moment."""

import re
import shutil
import subprocess
import sys

import psutil
import pytest
import rasterio
import torch
from harness import SECONDS, ended, finish, litter, place_of, spawn, wait_for, write_raster
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")


def distill(world, out, *more):
    how = ["--method", "ce", "--student", "linear", "--calibrate", 0, "--batch", 2, "--threads", 1]
    return ["distill", "--work", world.work, *how, "--out", out, *more]


def readers_of(process):
    """The processes that read for a training, once it has logged a step."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "tracker" not in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_reader_that_is_killed_is_replaced_and_the_weights_are_the_same(world, tmp_path):
    steps = ["--steps", 2000, "--validate-every", 1000, "--workers", 1]
    assert ended(*distill(world, tmp_path / "a.safetensors", *steps[:-1], 0, "-q")).code == 0
    process = spawn(*distill(world, tmp_path / "b.safetensors", *steps))
    wait_for(process, (tmp_path / "b.log.csv").exists)
    readers_of(process)[0].kill()
    run = finish(process)
    assert run.code == 0, run.err
    assert re.search(r"a reading process died (while reading .+|between two files); reading goes on with new workers", run.err)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_numbers_that_run_away_end_with_four_and_the_last_good_state(world, tmp_path):
    run = ended(*distill(world, tmp_path / "s.safetensors", "--steps", 6, "--lr", "1e30"))
    assert run.code == 4, run.err
    assert run.err.count("back to step 0 with") == 3
    assert re.search(r"is (nan|inf|not finite) at step \d, on scene at row \d+ column \d+", run.line)
    assert "--lr" in run.line
    assert not (tmp_path / "s.safetensors").exists()
    state = torch.load(tmp_path / "s.state.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["objective"].values())
    assert litter(tmp_path) == []


def test_a_state_of_other_options_or_pixels_is_not_gone_on_with(world, tmp_path):
    """What is resumed with other options, or after a scene changed, equals a fresh run, and it is said why."""
    scene, work = tmp_path / "scene.tif", tmp_path / "work"
    shutil.copy(world.scene, scene)
    tiled = ["tile", scene, "--labels", world.labels, "--classes", world.classes, "--tile", 64, "--work", work, "-q"]
    assert ended(*tiled).code == 0
    here, steps = world._replace(work=work), ["--steps", 4, "--seed", 5]
    assert ended(*distill(here, tmp_path / "a.safetensors", *steps, "--lr", "1e30")).code == 4  # which leaves a state
    state = (tmp_path / "a.state.pt").read_bytes()
    assert ended(*distill(here, tmp_path / "b.safetensors", *steps)).code == 0
    run = ended(*distill(here, tmp_path / "a.safetensors", *steps, "--resume"))
    assert run.code == 0, run.err
    assert "other options or data" in run.err
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    with rasterio.open(scene, "r+") as file:
        file.write(255 - file.read())
    (tmp_path / "a.state.pt").write_bytes(state)
    run = ended(*distill(here, tmp_path / "a.safetensors", *steps, "--lr", "1e30", "--resume"))
    assert run.code == 4
    assert "other options or data" in run.err
    assert "scene has changed since it was tiled" in run.err


MEMORY = """
import resource, sys
from pathlib import Path
from rsdistill import cli
import rsdistill.commands.evaluate, rsdistill.training.student, rsdistill.training.run
for warm in (sys.argv[2:], None):
    if warm is None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), resource.RLIM_INFINITY))
        sys.exit(cli.run(sys.argv[2:]))
    cli.run([*warm, "--steps", "1", "--batch", "1", "--overwrite", "-q"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_memory_that_ends_halves_the_parts_of_a_step(world, tmp_path):
    """With the processor's own memory limited for real; the step stays the same step."""
    command = ["distill", "--work", world.work, "--method", "ce", "--student", "base", "--calibrate", 0, "--threads", 1, "--overwrite"]
    much = ["--steps", 2, "--batch", 32, "--contexts", 32, "--out", tmp_path / "s.safetensors"]
    script = [sys.executable, "-c", MEMORY, 300 << 20, *command, *much]
    run = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert run.returncode == 0, run.stderr
    assert "steps are taken in 2 parts from here" in run.stderr
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "s.safetensors").values())


def test_a_scene_that_is_gone_is_named_and_its_return_is_enough(world, tmp_path):
    """The tile set points at a scene that somebody moves away, and back."""
    scene = tmp_path / "scene.tif"
    shutil.copy(world.scene, scene)
    tiled = ["tile", scene, "--labels", world.labels, "--classes", world.classes, "--tile", 64, "--work", tmp_path / "work", "-q"]
    assert ended(*tiled).code == 0
    train = distill(world._replace(work=tmp_path / "work"), tmp_path / "s.safetensors", "--steps", 2, "-q")
    scene.rename(tmp_path / "elsewhere.tif")
    run = ended(*train)
    assert run.code == 2, run.err
    assert "scene.tif" in run.line
    assert not (tmp_path / "s.safetensors").exists()
    (tmp_path / "elsewhere.tif").rename(scene)
    assert ended(*train, "--overwrite").code == 0


def test_a_band_that_never_varies_is_no_reason_to_diverge(world, tmp_path):
    """A constant band has no deviation to divide by."""
    with rasterio.open(world.scene) as file:
        pixels = file.read()
    pixels[1] = 7
    write_raster(tmp_path / "s.tif", pixels, **place_of(world))
    shutil.copy(world.labels, tmp_path / "s_label.tif")
    work = tmp_path / "work"
    tiled = ended("tile", tmp_path / "s.tif", "--classes", world.classes, "--tile", 64, "--work", work, "-q")
    assert tiled.code == 0, tiled.err
    run = ended(*distill(world._replace(work=work), tmp_path / "m.safetensors", "--steps", 2, "-q"))
    assert run.code == 0, run.err
    assert load_file(tmp_path / "m.safetensors")["weight"].isfinite().all()
