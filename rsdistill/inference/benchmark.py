"""The goals that mapping is measured by: ratios of what runs side by side on this machine, medians of some rounds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Grid, Window, plan
from rsdistill.geo.writing import RasterWriter
from rsdistill.inference.blending import INVALID, Blend
from rsdistill.inference.choosing import AGREEMENT, Sample, candidates, fastest, samples, try_out
from rsdistill.inference.contestants import Task
from rsdistill.inference.eager import EagerBackend
from rsdistill.inference.engine import Job, strips
from rsdistill.inference.loading import Choice, backend_for, load
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.peers import PEERS, missing
from rsdistill.inference.race import Measured, measure
from rsdistill.inference.settings import MapConfig
from rsdistill.reporting import Progress

HUGE = 20_000
"""Side of the scene whose overlap factor is told."""
LARGE_SIDE = 4096
"""Side of the scene that other programs map too."""
FREE_TILE, FREE_MARGIN = 512, 64
"""Side and margin of the windows when there is no network to suit."""
SEEN = 2048
"""Side of the corner on which maps are compared."""
BLENDS: tuple[Blend, ...] = ("core", "hann", "gaussian")
WARM_UP = 256
"""Side of the corner that everyone maps before the clock starts."""
WIDE = 8192
"""Width of the scene that memory is measured on."""


@dataclass(frozen=True)
class Goal:
    """One line of the benchmark."""

    key: str
    what: str
    goal: str
    found: str
    met: bool | None
    """None where there is no bound for it, or it could not be measured."""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Course:
    """What everything is measured on."""

    scene: Path
    model: Path
    folder: Path
    threads: int
    rounds: int
    trained: bool
    """Whether the model is one that a person named."""
    progress: Progress

    def corner(self, side: int) -> Path:
        """Return a corner of the scene, or all of it where it is smaller."""
        with open_scene(self.scene) as source:
            height, width = min(side, source.grid.height), min(side, source.grid.width)
        return repeated(self.scene, self.folder / f"corner{side}.tif", height, width)

    def run(self, who: str, tile: int, margin: int, *, scene: Path | None = None, free: bool = False) -> Measured:
        """Measure one contestant."""
        out = str(self.folder / f"{who}.tif")
        task = Task(who, str(scene or self.scene), str(self.model), out, tile, margin, self.threads, free)
        return measure(task, self.corner(WARM_UP))


def repeated(scene: Path, path: Path, height: int, width: int) -> Path:
    """Write a scene of ``height`` × ``width`` pixels that shows ``scene`` again and again, unless it is there; return its name."""
    if path.exists():
        return path
    with open_scene(scene) as source:
        bands, grid = source.bands(), source.grid
        pixels, _ = source.read(grid.window, bands)
        layout: dict[str, Any] = {"bands": len(bands), "dtype": source.dtype, "nodata": source.nodata[0]}
    cols = np.arange(width) % grid.width
    with RasterWriter(path, Grid(height, width, grid.crs, grid.transform), **layout) as writer:
        for row in range(0, height, 512):
            rows = np.arange(row, min(height, row + 512)) % grid.height
            writer.write(Window(row, 0, len(rows), width), pixels[:, rows][:, :, cols])
    return path


def network_share(course: Course) -> Goal:
    """P1: a whole run, from file to file, beside a loop that only reads windows and runs the network."""
    windows = load(course.model).windows(None, None)
    runs = [tuple(course.run(who, windows.tile, windows.margin) for who in ("ours", "bare")) for _ in range(course.rounds)]
    wall = median(ours.seconds / ours.network_seconds for ours, _ in runs)
    cpu = median(ours.cpu_seconds / floor.network_cpu_seconds for ours, floor in runs)
    bound = 1.05 if course.threads == 1 else 1.10
    network = median(floor.network_cpu_seconds for _, floor in runs) / megapixels(course.scene)
    found = f"wall {wall:.3f}, CPU {cpu:.3f} ({network:.2f} CPU-s a megapixel in the network)"
    figures = {"wall": wall, "cpu": cpu, "network_cpu_seconds_a_megapixel": network}
    goal = f"wall ≤ {bound:.2f}, CPU ≤ 1.10"
    return Goal("P1", "a whole run ÷ time inside the network", goal, found, wall <= bound and cpu <= 1.10, figures)


def overlap(course: Course) -> Goal:
    """P2: pixels that pass through the network per pixel of a large scene."""
    model = load(course.model)
    windows = model.windows(None, None)
    factor = plan(HUGE, HUGE, windows.tile, windows.margin, model.stride).overlap_factor
    return Goal("P2", f"network pixels ÷ scene pixels at {HUGE}²", "≤ 1.30", f"{factor:.3f}", factor <= 1.30, {"factor": factor})


def host_work(course: Course) -> Goal:
    """P3: what is left when the network answers at once, beside other programs that take any function for a network."""
    scene = repeated(course.scene, course.folder / "large.tif", LARGE_SIDE, LARGE_SIDE)
    size = megapixels(scene)
    others = [who for who, peer in PEERS.items() if peer.free]
    contestants = ["ours", *(who for who in others if not missing(who))]
    runs: dict[str, list[Measured]] = {who: [] for who in contestants}
    for _ in range(course.rounds):
        for who in contestants:
            runs[who].append(course.run(who, FREE_TILE, FREE_MARGIN, scene=scene, free=True))
    times = {who: [one.cpu_seconds - one.network_cpu_seconds for one in found] for who, found in runs.items()}
    cost = {who: 1000 * median(found) / size for who, found in times.items()}
    peers = {who: median(theirs / own for theirs, own in zip(times[who], times["ours"], strict=True)) for who in cost}
    told = [f"{who} {factor:.1f} × as much" for who, factor in peers.items() if who != "ours"] or [missing(who) for who in others]
    met = cost["ours"] <= 35 and all(factor >= 5 for who, factor in peers.items() if who != "ours")
    found = f"{cost['ours']:.0f} CPU-ms; {', '.join(told)}"
    return Goal("P3", "host work a megapixel", "≤ 35 CPU-ms, peers ≥ 5 × as much", found, met, {"cpu_ms_a_megapixel": cost, "ratio": peers})


def memory_bound(course: Course) -> Goal:
    """P4: peak memory above imports and network on a wide scene, and on one twice as high.

    Windows of full height fill both exactly: on other scenes they are snug, and take less.
    """
    windows = load(course.model).windows(None, None)
    core, found = windows.tile - 2 * windows.margin, []
    rows = ceil(WIDE / core)
    for height in (rows * core + 2 * windows.margin, 2 * rows * core + 2 * windows.margin):
        scene = repeated(course.scene, course.folder / f"wide{height}.tif", height, WIDE)
        runs = [course.run("ours", windows.tile, windows.margin, scene=scene, free=True) for _ in range(min(3, course.rounds))]
        found.append(median(one.memory_bytes for one in runs))
    growth = found[1] / found[0] - 1
    told = f"{found[0] / 1e6:.0f} MB, {100 * growth:+.1f} % at twice the height"
    figures = {"bytes": found, "growth": growth}
    return Goal("P4", f"memory above imports at width {WIDE}", "≤ 250 MB, < 5 %", told, max(found) <= 250e6 and growth < 0.05, figures)


def backends(course: Course) -> Goal:
    """P5: what ``--backend auto`` takes, beside a plain loop in eager torch."""
    model, mapper = load(course.model), Mapper(MapConfig.of(device="cpu", threads=course.threads), course.model)
    windows = model.windows(None, None)
    with mapper.open(course.scene) as scene:
        bands = mapper.bands(scene)
        job = Job.of(plan(scene.grid.height, scene.grid.width, windows.tile, windows.margin, model.stride), scene.grid.window, "core")
        seen: list[Sample] = samples(scene, bands, job)

        def run(choice: Choice) -> Callable[[], Any]:
            return lambda: backend_for(model, scene, bands, choice=choice, device="cpu", threads=course.threads)

        choices = [model.reference, *candidates(model, None, on_processor=True)]
        network: Any = load(course.model).network
        eager = (Choice("torch"), lambda: EagerBackend(network, model.card))
        trials = try_out([eager, *((choice, run(choice)) for choice in choices)], seen)
    best = fastest(trials)
    speed = trials[0].seconds / best.seconds
    figures: dict[str, Any] = {}
    for one in trials[1:]:
        known = {"speed": trials[0].seconds / one.seconds, "agreement": one.agreement}
        figures[str(one.choice)] = {"problem": str(one.error)} if one.error else known
    found = f"{best.choice}: {speed:.2f} × at {100 * best.agreement:.2f} %"
    goal = f"≥ 2.5 × at ≥ {100 * AGREEMENT:.0f} % equal labels"
    return Goal("P5", "--backend auto beside eager NCHW float32", goal, found, speed >= 2.5, figures)


def disagreement(course: Course) -> Goal:
    """P6: how often a map differs from one with a margin of half a window, at equal windows and overlap, beside other programs."""
    model = load(course.model)
    tile = max(256, 4 * model.stride)
    margin = tile // 8
    scene = course.corner(SEEN)
    wide = labels_of(course, scene, 2 * tile, tile // 2, "core")
    known = wide != INVALID
    ids = Mapper(MapConfig.of(), course.model).table.to_ids(wide)[known]
    shares: dict[str, float] = {blend: float((labels_of(course, scene, tile, margin, blend) != wide)[known].mean()) for blend in BLENDS}
    for who in PEERS:
        if not missing(who):
            course.run(who, tile, margin, scene=scene)
            shares[who] = float((_pixels(course.folder / f"{who}.tif")[0][known] != ids).mean())
    by, moved = disagreement_when_moved(course, scene)
    found = ", ".join(f"{way} {100 * share:.2f} %" for way, share in shares.items()) + f"; windows moved by {by} pixels {100 * moved:.2f} %"
    met: bool | None = moved < 0.01 and shares["core"] <= min(share for way, share in shares.items() if way == "gaussian" or way in PEERS)
    if not course.trained:  # what it sees from afar means nothing to it
        found, met = f"{found} (of an untrained network)", None
    goal = "core ≤ gaussian and others, moved < 1 %"
    return Goal("P6", f"disagreement with wider context, windows of {tile}", goal, found, met, shares | {"moved": moved})


def disagreement_when_moved(course: Course, scene: Path) -> tuple[int, float]:
    """Return by how many pixels the windows were moved over the scene, a quarter of their side, and how much of the map changed.

    Windows have their usual size. They are moved by taking rows and columns off the scene; what the margin loses thereby is not counted.
    """
    model = load(course.model)
    windows = model.windows(None, None)
    with open_scene(scene) as source:
        by = min(windows.tile, source.grid.height, source.grid.width) // 4 // model.stride * model.stride
        part = Window(by, by, source.grid.height - by, source.grid.width - by)
        layout: dict[str, Any] = {"bands": len(source.bands()), "dtype": source.dtype, "nodata": source.nodata[0]}
        with RasterWriter(course.folder / "moved.tif", source.grid[part], **layout) as writer:
            writer.write(Window(0, 0, part.height, part.width), source.read(part, source.bands())[0])
    ours = labels_of(course, scene, windows.tile, windows.margin, "core")[by:, by:]
    inner = np.s_[windows.margin :, windows.margin :]
    return by, float((ours != labels_of(course, course.folder / "moved.tif", windows.tile, windows.margin, "core"))[inner].mean())


def same_bytes(course: Course, predict: Callable[..., Any]) -> Goal:
    """P7: the mask, byte by byte, made by one process and by two; and the share of pixels that convolutions' rounding moves."""
    ways: dict[str, dict[str, Any]] = {"one": {"threads": 1}, "two": {"threads": 1, "workers": 2}, "rounding": {"threads": 2, "batch": 2}}
    masks = {name: course.folder / name / "mask.tif" for name in ways}
    for name, way in ways.items():
        predict(course.scene, out=[masks[name]], model=course.model, device="cpu", overwrite=True, **way)
    same = sha256(masks["one"].read_bytes()).digest() == sha256(masks["two"].read_bytes()).digest()
    moved = float((_pixels(masks["one"]) != _pixels(masks["rounding"])).mean())
    found = f"{'the same' if same else 'others'}; with other threads and batch {moved:.1e} of the pixels move"
    figures = {"same": same, "moved": moved}
    return Goal("P7", "the mask's bytes from two workers", "the same; threads and batch ≤ 1e-6", found, same and moved <= 1e-6, figures)


def _pixels(mask: Path) -> NDArray[Any]:
    with open_scene(mask) as scene:
        return scene.read(scene.grid.window, [1])[0]


def whole_runs(course: Course) -> Goal:
    """Ours and every peer that is here, with the real network on the same scene and windows."""
    windows = load(course.model).windows(None, None)
    scene = repeated(course.scene, course.folder / "large.tif", LARGE_SIDE, LARGE_SIDE)
    own = course.run("ours", windows.tile, windows.margin, scene=scene)
    figures: dict[str, Any] = {"ours": vars(own)}
    told = []
    for who in PEERS:
        if reason := missing(who):
            figures[who] = {"problem": reason}
            told.append(reason)
            continue
        theirs = course.run(who, windows.tile, windows.margin, scene=scene)
        figures[who] = vars(theirs)
        cpu, memory = theirs.cpu_seconds / own.cpu_seconds, theirs.memory_bytes / max(1, own.memory_bytes)
        told.append(f"{who} {cpu:.2f} × CPU, {memory:.1f} × memory")
    return Goal("peers", "other programs, same network and scene", "ahead", "; ".join(told), None, figures)


def labels_of(course: Course, path: Path, tile: int, margin: int, blend: Blend) -> NDArray[np.uint8]:
    """Return the map of a scene with such windows."""
    mapper = Mapper(MapConfig.of(device="cpu", threads=course.threads, blend=blend), course.model)
    with mapper.open(path) as scene:
        found = strips(scene, mapper.backend(scene), bands=mapper.bands(scene), tile=tile, margin=margin, blend=blend)
        return np.concatenate([strip.labels for strip in found])


def megapixels(scene: Path) -> float:
    """Return the size of a scene."""
    with open_scene(scene) as source:
        return source.grid.height * source.grid.width / 1e6
