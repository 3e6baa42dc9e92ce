"""Mutated bytes against every reader: no traceback, no hang, no growth of memory, whatever a file holds."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from harness import ended, noise, place_of, write_linear, write_raster

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
HANG_SECONDS = 10.0
ASLEEP_SECONDS = 180.0
"""Of waiting for nothing, which takes no processor time."""
PEAK_BYTES = 2 << 30
FINE = {0, 2, 3, 6}
"""Exit codes that are answers; 1 is a bug."""
TELLING = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


HANG, DEATH = "hang", "death"


class Target(NamedTuple):
    """A file that a command reads."""

    file: Path
    command: list


class Answer(NamedTuple):
    code: int
    err: str
    peak: int


class Fuzzed(NamedTuple):
    """What became of all files."""

    seed: int
    seconds: float
    answers: Counter
    """How often each exit code was the answer, or how a process failed."""
    slowest: float
    """Seconds of processor time of one answer."""
    first_peak: int
    """Most bytes that the process had used when every valid file had been read once."""
    peak: int
    """Most bytes that any process used."""
    found: dict
    """Complaints, each with the first file that caused it and the command."""

    def summary(self):
        """One line a figure, for a person."""
        codes = ", ".join(f"exit {code}: {count}" if isinstance(code, int) else f"{code}: {count}" for code, count in self.answers.items())
        broken = sum(count for code, count in self.answers.items() if isinstance(code, int) and code not in FINE)
        ends = f"tracebacks: {broken}, hangs over {HANG_SECONDS:g} s: {self.answers[HANG]}, processes that died: {self.answers[DEATH]}"
        lines = [
            f"seed {self.seed}: {self.answers.total()} mutated files in {self.seconds:.0f} s ({codes})",
            f"{ends}, complaints of any kind: {len(self.found)}",
            f"slowest answer: {self.slowest:.1f} s of processor time",
            f"memory: {self.first_peak >> 20} MiB after every valid file, {self.peak >> 20} MiB at most",
        ]
        return "\n".join(lines)


def targets(world, folder):
    """Every kind of file that a command reads, small and valid; a fuzzed copy takes the place of each."""
    place = place_of(world)
    smooth = np.tile(np.arange(64, dtype=np.uint8), (3, 64, 1))
    predict = ["predict", "--model", folder / "m.safetensors", "--out", folder / "out.tif", "--overwrite", "-q"]
    write_linear(folder / "m.safetensors")
    found = []
    layouts = {
        "plain": {}, "tiled": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate", "predictor": 2},
        "lzw": {"compress": "lzw"}, "jpeg": {"compress": "jpeg", "photometric": "ycbcr"}, "bands": {"interleave": "band", "BIGTIFF": "YES"},
    }  # fmt: skip
    for name, layout in layouts.items():
        scene = write_raster(folder / f"{name}.tif", smooth, **place, **layout)
        found += [Target(scene, [*predict, scene]), Target(scene, ["check", scene])]
    for driver in ("PNG", "JPEG"):
        import rasterio

        scene = folder / f"s.{driver.lower()}"
        with rasterio.open(scene, "w", driver=driver, height=64, width=64, count=3, dtype="uint8") as file:
            file.write(noise())
        found += [Target(scene, [*predict, scene])]
    scene = folder / "plain.tif"
    (folder / "v.vrt").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">lzw.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    (folder / "plain.tif.aux.xml").write_text("<PAMDataset><GeoTransform>0,1,0,0,0,-1</GeoTransform><SRS>EPSG:32633</SRS></PAMDataset>")
    (folder / "classes.toml").write_text('ignore = [0]\n[[class]]\nid = 1\nname = "a"\ncolor = "#ffffff"\nsources = [1, 2]\n')
    (folder / "classes.csv").write_text("id,name,color,sources\n1,a,#ffffff,1 2\n")
    (folder / "run.toml").write_text('command = "predict"\nout = ["out.tif"]\ntile = 64\nbatch = 2\nnodata = [0.0]\nseed = 1\n')
    labels = write_raster(folder / "plain_label.tif", np.ones((64, 64), np.uint8), compress="deflate", **place)
    ring = [[300_000.0, 4_999_990.0], [300_020.0, 4_999_990.0], [300_020.0, 4_999_970.0], [300_000.0, 4_999_990.0]]
    feature = {"type": "Feature", "properties": {"class_id": 1}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (folder / "p.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    mask = Path(shutil.copy(labels, folder / "mask.tif"))
    measure = ["evaluate", "--labels", labels, "--classes", folder / "classes.toml", "--out", folder / "e", "--overwrite", "-q", "--mask"]
    shutil.copytree(world.work / "tiles", folder / "tiles")
    tile = ["tile", scene, "--classes", folder / "classes.toml", "--out", folder / "made", "--tile", 32, "--overwrite", "-q", "--labels"]
    return [
        *found,
        Target(folder / "v.vrt", ["check", folder / "v.vrt", "--allow-vrt"]),
        Target(folder / "plain.tif.aux.xml", ["info", scene]),
        Target(folder / "classes.toml", ["check", folder / "classes.toml"]),
        Target(folder / "classes.csv", ["check", folder / "classes.csv"]),
        Target(folder / "run.toml", [*predict, scene, "--config", folder / "run.toml", "--dry-run"]),
        Target(labels, [*tile, labels]),
        Target(mask, [*measure, mask]),
        Target(mask, ["style", mask, "--classes", folder / "classes.toml"]),
        Target(folder / "p.geojson", [*tile, folder / "p.geojson"]),
        Target(folder / "m.safetensors", [*predict, scene]),
        Target(folder / "m.safetensors", ["info", folder / "m.safetensors"]),
        Target(folder / "tiles" / "tileset.json", ["check", folder / "tiles", "--headers"]),
        Target(folder / "tiles" / "tiles.gpkg", ["info", folder / "tiles"]),
    ]


def mutated(content, chance):
    """Return ``content`` with one to eight changes: bits, telling numbers, cuts, repeats and moved pieces."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        at = chance.randrange(min(len(data), chance.choice((64, 1024, 1 << 30))))
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                form, value = chance.choice("<>") + chance.choice("HIQ"), chance.choice(TELLING)
                number = struct.pack(form, value & (1 << 8 * struct.calcsize(form)) - 1)
                data[at : at + len(number)] = number
            case 3:
                del data[at : at + chance.choice((1, 4, 64, 1 << 30))]
            case 4:
                piece = data[at : at + chance.choice((1, 8, 256))]
                data[at:at] = piece * chance.choice((1, 2, 1000))
            case _:
                there = chance.randrange(len(data))
                data[at : at + 16] = data[there : there + 16]
    return bytes(data)


def serve(pipe):
    """Run commands that come through ``pipe``, in a process that may die."""
    os.environ["OMP_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        run = ended(*pipe.recv())
        pipe.send(Answer(run.code, run.err, peak_memory()))


def peak_memory():
    """Return the most bytes that this process had resident; what getrusage tells begins with the memory of the process that made it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


class Server:
    """The process that runs commands, begun anew when it dies or hangs."""

    def __init__(self):
        self.context = multiprocessing.get_context("spawn")
        self.start()

    def start(self):
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, command, seconds=HANG_SECONDS):
        """Return what became of ``command``: an Answer, or how the process failed."""
        self.pipe.send([*map(str, command)])
        before, start = self.busy(), time.monotonic()
        try:
            while self.busy() - before < seconds and time.monotonic() - start < ASLEEP_SECONDS:
                if self.pipe.poll(1):
                    return self.pipe.recv()
            fault = f"{HANG}: no answer within {seconds:g} s of processor time or {ASLEEP_SECONDS:g} s"
        except (EOFError, psutil.Error):
            self.process.join()
            fault = f"{DEATH}: died with {self.process.exitcode}"
        self.stop()
        self.start()
        self.ask(["--version"], 120)  # what is imported does not count as a hang
        return fault

    def busy(self):
        """Seconds of processor time so far: other work on the machine makes no hang of a slow answer."""
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def stop(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()


def complaint(answer):
    """Say what is wrong with an answer; empty where nothing is."""
    if isinstance(answer, str):
        return answer
    if answer.code not in FINE or "Traceback" in answer.err or "internal error" in answer.err:
        return f"exit {answer.code}: {answer.err.strip()[-300:]}"
    if answer.code in (2, 3) and not answer.err.rstrip().endswith(")"):
        return f"no next step: {answer.err.strip()[-300:]}"
    if answer.peak > PEAK_BYTES:
        return f"{answer.peak >> 20} MiB of memory"
    return ""


def fuzz(world, folder, seconds, rounds, seed):
    """Mutate and run until the time or the rounds are over."""
    chance, found, answers, slowest, peak = random.Random(seed), {}, Counter(), 0.0, 0
    chosen = targets(world, folder)
    server = Server()
    try:
        for target in chosen:  # all of them work before they are broken, and what is imported does not count as a hang
            answer = server.ask(target.command, 120)
            assert isinstance(answer, Answer), (target, answer)
            assert answer.code in (0, 2), (target, answer)
            first_peak = peak = max(peak, answer.peak)
        start = time.monotonic()
        while time.monotonic() < start + seconds and answers.total() < rounds:
            target = chance.choice(chosen)
            original = target.file.read_bytes()
            content = mutated(original, chance)
            target.file.write_bytes(content)
            before = server.busy()
            answer = server.ask(target.command)
            if isinstance(answer, Answer):
                slowest, peak = max(slowest, server.busy() - before), max(peak, answer.peak)
            answers[answer.code if isinstance(answer, Answer) else answer.partition(":")[0]] += 1
            if wrong := complaint(answer):
                kept = folder.parent / f"{folder.name}-fault-{len(found)}-{target.file.name}"
                kept.write_bytes(content)
                found.setdefault(wrong, (kept, " ".join(map(str, target.command))))
            target.file.write_bytes(original)
    finally:
        server.stop()
    return Fuzzed(seed, time.monotonic() - start, answers, slowest, first_peak, peak, found)


def report(found):
    return "\n".join(f"{wrong}\n    {kept}\n    {command}" for wrong, (kept, command) in found.items())


def test_a_few_mutated_files(world, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    fuzzed = fuzz(world, folder, seconds=60, rounds=60, seed=int(os.environ.get("RSDISTILL_FUZZ_SEED", "1")))
    assert fuzzed.answers.total()
    assert not fuzzed.found, report(fuzzed.found)


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_mutated_files_for_minutes(world, tmp_path, capsys):
    """Ten minutes, or RSDISTILL_FUZZ_SECONDS; the seed is printed, and RSDISTILL_FUZZ_SEED repeats it."""
    folder = tmp_path / "files"
    folder.mkdir()
    seed = int(os.environ.get("RSDISTILL_FUZZ_SEED", time.time_ns()))
    fuzzed = fuzz(world, folder, float(os.environ.get("RSDISTILL_FUZZ_SECONDS", "600")), sys.maxsize, seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{fuzzed.summary()}\n")
    assert not fuzzed.found, report(fuzzed.found)
    assert fuzzed.peak < PEAK_BYTES
