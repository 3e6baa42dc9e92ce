"""``bench``: the ratios that this package is built to, measured on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rsdistill.config import RunConfig
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.inference.benchmark import Course, Goal

Line = Literal["P1", "P2", "P3", "P4", "P5", "P6", "P7", "V1", "V2", "S1", "peers"]
LINES: tuple[Line, ...] = ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "V1", "V2", "S1", "peers")

REGIONS_SIZE = 2048
"""Side in pixels of the mask that polygons are made of."""


class BenchConfig(RunConfig):
    """Options of ``bench``."""

    model: Path | None = Field(None, description="Model file to measure (default: an untrained network of --arch).")
    arch: str = Field("small", description="Architecture of the untrained network.")
    scene: Path | None = Field(None, description="Scene to measure on, of the model's bands (default: one that is drawn).")
    size: int = Field(2048, ge=256, description="Side in pixels of the drawn scene.")
    only: tuple[Line, ...] = Field((), description="Lines to measure, comma-separated (default: all).")
    rounds: int = Field(5, ge=1, description="Rounds of each measurement, whose median counts.")
    threads: int = Field(1, ge=1, description="Threads of the network.")
    out: Path | None = Field(None, description="JSON file to write (default WORK/bench.json).")


def bench(*, progress: Progress = SILENT, **options: Any) -> Result:
    """Measure this machine: what is spent around the network, overlap, memory, backends, seams, polygons, start-up, and other programs.

    Contestants run one after the other, each in a process of its own, on the same network and scene; ratios travel between machines,
    seconds do not. Other programs take part where they are installed: MONAI, TerraTorch, GeoAI and GeoDeep. The result is a JSON file with
    all figures.
    """
    config = BenchConfig.of(**options)
    from tempfile import TemporaryDirectory

    from rsdistill.geo.files import atomic, refuse_existing
    from rsdistill.inference.benchmark import Course

    out = config.out or config.work / "bench.json"
    refuse_existing([out], config.overwrite)
    with TemporaryDirectory(prefix="rsdistill-") as name:
        folder = Path(name)
        scene = config.scene or _draw(folder, config)
        model = config.model or _untrained(folder, scene, config)
        course = Course(
            scene.absolute(),
            model.absolute(),  # contestants run in folders of their own
            folder,
            config.threads,
            config.rounds,
            config.model is not None,
            progress,
        )
        lines = [line for line in LINES if line in (config.only or LINES)]
        goals = []
        with progress.task("bench", len(lines)) as bar:
            for line in lines:
                goals.append(_measure(line, course))
                progress.message(f"{goals[-1].key}: {goals[-1].what}: {goals[-1].found}")
                bar.advance()
    data = {
        "machine": _machine(),
        "options": config.model_dump(mode="json", exclude={"work", "out"})
        | {name: path and path.name for name, path in (("model", config.model), ("scene", config.scene))},
        "lines": [vars(goal) for goal in goals],
    }
    with atomic(out) as part:
        part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    rows = tuple((goal.key, goal.what, goal.goal, goal.found, {True: "yes", False: "no", None: ""}[goal.met]) for goal in goals)
    return Result((out,), data, (Table("bench", ("", "what", "goal", "found", "met"), rows),))


def _measure(line: Line, course: "Course") -> "Goal":
    from rsdistill.commands.predict import predict
    from rsdistill.inference import benchmark

    if line == "P7":
        return benchmark.same_bytes(course, predict)
    if line in ("V1", "V2"):
        return _polygons(line, course)
    if line == "S1":
        return _start(course)
    measures = {
        "P1": benchmark.network_share,
        "P2": benchmark.overlap,
        "P3": benchmark.host_work,
        "P4": benchmark.memory_bound,
        "P5": benchmark.backends,
        "P6": benchmark.disagreement,
        "peers": benchmark.whole_runs,
    }
    return measures[line](course)


def _polygons(line: Line, course: "Course") -> "Goal":
    """V1, V2: a mask of many small regions to polygons, beside draining GDAL's polygonizer."""
    from statistics import median

    from rsdistill.inference.benchmark import Goal
    from rsdistill.outputs.polygon_race import draw_regions, race

    race(*draw_regions(course.folder / "few.tif", 256))  # what is done once, as for every other line
    mask, table = draw_regions(course.folder / "regions.tif", REGIONS_SIZE)
    runs = [race(mask, table) for _ in range(course.rounds if line == "V1" else 1)]
    found = runs[0]
    if line == "V1":
        ratio = median(one.seconds / one.drain_seconds for one in runs)
        told = f"{ratio:.2f} ({found.polygons} polygons)"
        return Goal("V1", "mask → GeoPackage ÷ draining GDAL's polygonizer", "≤ 2.0", told, ratio <= 2.0, {"ratio": ratio})
    told = f"{found.invalid} invalid, {found.polygons} of {found.expected}, area off by {found.area_error:.0e}"
    met = found.invalid == 0 and found.polygons == found.expected and found.area_error < 1e-9
    return Goal("V2", "polygons: validity, count, area", "0 invalid, GDAL's count, exact", told, met, found._asdict())


def _start(course: "Course") -> "Goal":
    """S1: CPU time of ``--help``."""
    import os
    import subprocess
    import sys
    from statistics import median

    from rsdistill.inference.benchmark import Goal

    times = []
    for _ in range(course.rounds):
        before = os.times()
        subprocess.run([sys.executable, "-m", "rsdistill", "--help"], check=True, capture_output=True)
        after = os.times()
        times.append(after.children_user - before.children_user + after.children_system - before.children_system)
    seconds = median(times)
    return Goal("S1", "CPU time of rsdistill --help", "≤ 0.6 s", f"{seconds:.2f} s", seconds <= 0.6, {"seconds": seconds})


def _draw(folder: Path, config: BenchConfig) -> Path:
    from rsdistill.geo.synthetic import write_land_cover

    return write_land_cover(folder, size=config.size, seed=config.seed).scene


def _untrained(folder: Path, scene: Path, config: BenchConfig) -> Path:
    """Write a network that nobody trained; what is measured of time and memory does not depend on its weights."""
    import torch

    from rsdistill.geo.scenes import open_scene
    from rsdistill.models import ModelCard, build_network, save_model

    with open_scene(scene) as source:
        bands, pixel_size = source.bands(), source.grid.pixel_size
    torch.manual_seed(config.seed)
    classes = [{"id": number, "name": f"class {number}", "color": f"#{40 * number:02x}8080"} for number in range(1, 7)]
    figures = {"mean": [110.0] * len(bands), "std": [50.0] * len(bands)}
    card: dict[str, Any] = {"arch": config.arch, "classes": classes, "bands": bands, **figures}
    path = folder / "untrained.safetensors"
    save_model(path, build_network(config.arch, {}, bands=len(bands), classes=6), ModelCard(**card, pixel_size=pixel_size))
    return path


def _machine() -> dict[str, Any]:
    import os
    import platform

    import torch

    from rsdistill import __version__

    versions = {"rsdistill": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {"system": platform.system(), "processor": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(), **versions}
