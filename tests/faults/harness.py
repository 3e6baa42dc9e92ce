"""A small world that works (scene, labels, classes, tile set, model) and ways to run commands in it; the fuzzer uses it too."""

import ctypes
import io
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import rasterio
from affine import Affine
from safetensors.numpy import save_file

from rsdistill import cli
from rsdistill.geo.synthetic import write_land_cover

GRID = Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000)
SECONDS = 280
"""Until a spawned command is given up: less than a test may take."""

MODULE = ("-m", "rsdistill")
HELD = """
import os, signal
from rsdistill.cli import main
keep = os.fsync
def first(handle):
    os.fsync = keep
    os.kill(os.getpid(), signal.SIGSTOP)
    keep(handle)
os.fsync = first
main()
"""
"""The command line, but that it stops itself, as SIGSTOP does, where it is about to keep the first file that it wrote."""

_spawned: list[subprocess.Popen] = []


class World(NamedTuple):
    """Paths of files that every command takes without complaint."""

    root: Path
    scene: Path
    labels: Path
    classes: Path
    work: Path


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The last line on stderr: what went wrong."""
        return self.err.rstrip("\n").rpartition("\n")[2]


def write_raster(path, pixels, *, crs="EPSG:32633", transform=GRID, **profile):
    bands = pixels[None] if pixels.ndim == 2 else pixels
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **profile) as file:
        file.write(bands)
    return path


def noise(bands=3, height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(30, 200, (bands, height, width), np.uint8)


def write_linear(path, *, bands=3, classes=2, seed=0, weight=None, metadata=None, card=None):
    """Write a ``linear`` model by hand: a spectral classifier whose answer is known exactly."""
    names = [{"id": i + 1, "name": f"class {i + 1}", "color": f"#{i:02x}8040"} for i in range(classes)]
    usual = {"format_version": 1, "arch": "linear", "arch_args": {}, "classes": names, "bands": list(range(1, bands + 1))}
    usual |= {"mean": [100.0] * bands, "std": [50.0] * bands}
    weight = np.random.default_rng(seed).normal(size=(classes, bands, 1, 1)).astype(np.float32) if weight is None else weight
    tensors = {"weight": weight, "bias": np.zeros(len(weight), np.float32)}
    save_file(tensors, path, metadata={"rsdistill": json.dumps(usual | (card or {}))} if metadata is None else metadata)
    return path


def ended(*arguments):
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.run([*map(str, arguments)])
    return Ended(code, out.getvalue(), err.getvalue())


def spawn(*arguments, program=MODULE, cwd=None, env=None, **how):
    """Start the command line as a process of its own group; it ends with the test at the latest."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, *program, *map(str, arguments)]
    _spawned.append(subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, **how))
    return _spawned[-1]


def end_spawned():
    """End what a test that failed left running, and close its pipes: they would be the next test's fault."""
    while _spawned:
        with _spawned.pop() as process:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process, ready):
    """Wait until ``ready()`` holds while a spawned command runs; that it ended before is a failure, and so told."""
    end = time.monotonic() + SECONDS
    while not ready():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def held(process):
    """Whether a process is stopped, as :data:`HELD` stops itself."""
    return lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


def finish(process, seconds=SECONDS):
    """Wait for a spawned command and say how it ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Ended(process.returncode, out or "", err or "")


def every_command(world, out):
    """Commands that write, small but real, and the result of each, by name; all of them end well as they are."""
    work, quick = ["--work", world.work], ["--steps", 4, "--batch", 2, "--threads", 1]
    labels, linear = ["--labels", world.labels], ["--student", "linear", "--calibrate", 0, *quick]
    commands = {
        "tile": (["tile", world.scene, *labels, "--classes", world.classes, "--tile", 64], "tiles"),
        "train-teacher": (["train-teacher", *work, "--arch", "linear", *quick], "t.safetensors"),
        "distill": (["distill", *work, "--method", "kd", "--teacher", "student", *linear], "s.safetensors"),
        "predict": (["predict", world.scene, *work], "m.tif"),
        "predict polygons": (["predict", world.scene, *work], "m.gpkg"),
        "evaluate": (["evaluate", world.scene, *labels, *work], "evaluation"),
        "export": (["export", "student", *work], "m.onnx"),
        "compare": (["compare", *work, "--teacher", "student", "--seeds", 1, "--budget", "steps", *linear[:2], *quick], "comparison"),
    }
    return {name: ([*command, "--out", out / result, "-q"], out / result) for name, (command, result) in commands.items()}


def content(path):
    """Bytes of a file, or of every file in a folder by its name."""
    if path.is_dir():
        return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}
    return path.read_bytes()


def refused_by_the_kernel(calls, error):
    """Return what a process has to call first so that the kernel answers these system calls with ``error``, to it and its children."""
    numbers = [SYSTEM_CALLS[platform.machine()][call] for call in calls]

    def deny():
        libc = ctypes.CDLL(None, use_errno=True)
        jumps = [(0x15, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
        lines = [(0x20, 0, 0, 0), *jumps, (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | error)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
        program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
            raise OSError(ctypes.get_errno(), "this system filters no calls")

    return deny


SYSTEM_CALLS = {"x86_64": {"fsync": 74, "fdatasync": 75}, "aarch64": {"fsync": 82, "fdatasync": 83}}


def litter(folder):
    """Hidden files and folders that a command should not have left."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def make_world(root):
    drawn = write_land_cover(root, size=256, seed=1)
    work = root / "work"
    tiled = ended("tile", drawn.scene, "--labels", drawn.labels, "--classes", drawn.classes, "--work", work, "--tile", 64, "-q")
    assert tiled.code == 0, tiled.err
    write_linear(work / "student.safetensors", classes=7)
    return World(root, drawn.scene, drawn.labels, drawn.classes, work)


def place_of(world):
    """CRS and transform of the world's scene, as keyword arguments of write_raster."""
    with rasterio.open(world.scene) as file:
        return {"crs": file.crs, "transform": file.transform}
