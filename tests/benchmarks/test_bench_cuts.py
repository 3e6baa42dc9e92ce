"""What it would bring if windows faded into each other at cuts, and what it would cost: the trials behind a decision."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pytest

from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import Placement, Plan, Window, plan
from rsdistill.inference.blending import INVALID, Wanted, accumulator, window_weights
from rsdistill.inference.cutting import cut
from rsdistill.inference.engine import padded, strips
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.scores import argmax
from rsdistill.inference.settings import MapConfig

pytestmark = pytest.mark.benchmark
MODEL, SCENE = os.environ.get("RSDISTILL_BENCH_MODEL"), os.environ.get("RSDISTILL_BENCH_SCENE")
MOST = 3072
"""Side in pixels of the part of a scene that is mapped once for each way: all of its scores are held."""
CLASSES = 6
SIDE = 4096
"""Of the map that is collected to see what that costs."""
ROUNDS = 5


class Way(NamedTuple):
    """How windows become one map."""

    name: str
    fade: float = 0.0
    """Half the width over which a window gives way to the next, in margins."""
    together: int = 0
    """Windows of a side between sharp cuts, where a map could be divided; 0: no cut is sharp."""
    blend: str = "core"


WAYS = [
    Way("core"),
    *(
        Way(f"fade {fade:.2f} margins, {f'{together - 1} of {together} cuts' if together else 'all cuts'}", fade, together)
        for fade in (0.25, 0.5, 0.75, 1.0)
        for together in (0, 8, 4, 2)
    ),
    Way("hann", blend="hann"),
    Way("gaussian", blend="gaussian"),
]


def side_weights(spans: tuple[tuple[int, int, int], ...], length: int, size: int, reach: int, way: Way) -> list[np.ndarray]:
    """Return, for each window of one side, its weight at each of ``length`` pixels; ``reach``: pixels that fade on both sides of a cut."""
    middles, found = np.arange(length) + 0.5, []
    for number, (start, first, stop) in enumerate(spans):
        weights = np.zeros(length, np.float32)
        if way.blend != "core":
            weights[start : start + size] = window_weights(way.blend, size)[: length - start]
        else:
            rising, falling = (_ramp(middles - edge, reach if soft else 0) for edge, soft in _edges(number, first, stop, len(spans), way))
            weights[:] = np.minimum(rising, 1 - falling)
        found.append(weights)
    return found


def _edges(number: int, first: int, stop: int, count: int, way: Way) -> Iterator[tuple[int, bool]]:
    for edge, place in ((first, number), (stop, number + 1)):
        yield edge, 0 < place < count and way.fade > 0 and (way.together == 0 or place % way.together != 0)


def _ramp(distances: np.ndarray, reach: int) -> np.ndarray:
    return np.clip(0.5 + distances / (2 * reach), 0, 1) if reach else (distances > 0).astype(float)


def disagreement(mapper: Mapper, scene: Scene, tile: int, margin: int, area: Window) -> Iterator[tuple[str, float]]:
    """Yield the share of pixels of ``area`` that differ from a map with wider context, for each way."""
    backend, bands, grid = mapper.backend(scene), mapper.bands(scene), scene.grid
    wide = np.concatenate([one.labels for one in strips(scene, backend, bands=bands, tile=2 * tile, margin=tile // 2, window=area)])
    layout = plan(grid.height, grid.width, tile, margin, backend.stride)
    logits = {}
    for number in range(len(layout)):
        place = divmod(number, len(layout.cols))
        read = layout.placement(*place).read
        if 0 not in read.intersection(area)[2:]:
            image, valid = padded(layout.tile, *scene.read(read, bands))
            logits[place] = backend(image[None], valid[None], [read])[0][:, : read.height, : read.width]
    for way in WAYS:
        reach = round(way.fade * margin)
        rows = side_weights(layout.rows, grid.height, layout.tile[0], reach, way)
        cols = side_weights(layout.cols, grid.width, layout.tile[1], reach, way)
        total = np.zeros((backend.classes, grid.height, grid.width), np.float32)
        for (row, col), scores in logits.items():
            down, right = layout.placement(row, col).read.slices
            total[:, down, right] += scores * np.outer(rows[row][down], cols[col][right])
        known = wide != INVALID
        yield way.name, float((argmax(total[:, *area.slices]) != wide)[known].mean())


class Fading:
    """Collects windows as ``core`` does, but that each fades into the next over ``fade`` pixels on both sides of every cut.

    Each window adds what those to its left and above gave, and leaves to those after it what it gives; only its settled part is labelled.
    """

    def __init__(self, layout: Plan, fade: int) -> None:
        self._layout, self._fade = layout, fade
        ramp = ((np.arange(2 * fade) + 0.5) / (2 * fade)).astype(np.float32)
        self._rising, self._falling = ramp, ramp[::-1].copy()
        self._beside = np.zeros((CLASSES, layout.tile[0], 2 * fade), np.float32)
        self._above = np.zeros((CLASSES, 2 * fade, layout.width), np.float32)

    def add(self, place: Placement, logits: np.ndarray, labels: np.ndarray) -> None:
        """Label the settled part of a window in ``labels`` (h, w) of the map; ``logits`` (K, T, T) are overwritten."""
        read, core, fade = place.read, place.core, self._fade
        left, right = core.col - read.col, core.stop[1] - read.col
        top, bottom = core.row - read.row, core.stop[0] - read.row
        height, width = self._layout.height, self._layout.width
        for plane, beside in zip(logits, self._beside, strict=True):  # class by class, so that what is worked on stays in the cache
            if core.col > 0:
                mine = plane[:, left - fade : left + fade]
                mine *= self._rising
                mine += beside
            if core.stop[1] < width:
                np.multiply(plane[:, right - fade : right + fade], self._falling, out=beside)
        left, right = left - fade * (core.col > 0), right - fade * (core.stop[1] < width)
        for plane, above in zip(logits, self._above[:, :, read.col + left : read.col + right], strict=True):
            if core.row > 0:
                mine = plane[top - fade : top + fade, left:right]
                mine *= self._rising[:, None]
                mine += above
            if core.stop[0] < height:
                np.multiply(plane[bottom - fade : bottom + fade, left:right], self._falling[:, None], out=above)
        top, bottom = top - fade * (core.row > 0), bottom - fade * (core.stop[0] < height)
        target = labels[read.row + top : read.row + bottom, read.col + left : read.col + right]
        target[:] = argmax(logits[:, top:bottom])[:, left:right]


def collecting(tile: int, margin: int) -> Iterator[tuple[str, float]]:
    """Yield the processor time, in ms a megapixel, of collecting the labels of a map of random scores, for some ways."""
    layout, area = plan(SIDE, SIDE, tile, margin, 32), Window(0, 0, SIDE, SIDE)
    scores = np.random.default_rng(0).normal(size=(CLASSES, *layout.tile)).astype(np.float32)
    keep = np.ones(layout.tile, bool)

    def fading(fade: int) -> None:
        collect, labels = Fading(layout, fade), np.empty((SIDE, SIDE), np.uint8)
        for number in range(len(layout)):
            collect.add(layout.placement(*divmod(number, len(layout.cols))), scores, labels)

    def known(blend: str) -> None:
        collect = accumulator(layout, area, CLASSES, Wanted(), blend)
        for row in range(len(layout.rows)):
            for col in range(len(layout.cols)):
                collect.add(layout.placement(row, col), scores, keep)
            collect.finish(row)

    calls = {"core": lambda: known("core")}
    calls |= {f"fade {share:.2f} margins": lambda share=share: fading(round(share * margin)) for share in (0.25, 0.5, 1.0)}
    calls |= {"hann": lambda: known("hann")}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    yield from ((name, 1e9 * median(some) / SIDE**2) for name, some in times.items())


def test_what_fades_is_the_weighted_mean():
    """The trial itself: labels of the collector that is timed are those of weights summed over the whole map."""
    layout, rng = plan(180, 200, 64, 12, 4), np.random.default_rng(0)
    rows = side_weights(layout.rows, 180, layout.tile[0], 6, Way("", 0.5))
    cols = side_weights(layout.cols, 200, layout.tile[1], 6, Way("", 0.5))
    collect, labels, total = Fading(layout, 6), np.empty((180, 200), np.uint8), np.zeros((CLASSES, 180, 200), np.float32)
    for number in range(len(layout)):
        row, col = divmod(number, len(layout.cols))
        place = layout.placement(row, col)
        down, right = place.read.slices
        scores = rng.normal(size=(CLASSES, *layout.tile)).astype(np.float32)
        total[:, down, right] += scores[:, : place.read.height, : place.read.width] * np.outer(rows[row][down], cols[col][right])
        collect.add(place, scores, labels)
    np.testing.assert_allclose(np.sum(rows, axis=0)[:, None] * np.sum(cols, axis=0), 1, rtol=1e-6)
    assert (labels == total.argmax(0)).mean() > 0.9999


@pytest.mark.skipif(not MODEL or not SCENE, reason="RSDISTILL_BENCH_MODEL and RSDISTILL_BENCH_SCENE name no trained model and scene")
@pytest.mark.parametrize(("tile", "margin"), [(256, 32), (512, 64)])
def test_where_all_cuts_fade_a_map_differs_less(tile, margin):
    mapper = Mapper(MapConfig.of(device="cpu", threads=1), Path(MODEL))
    found = {}
    with mapper.open(Path(SCENE)) as scene:
        area = Window(0, 0, min(MOST, scene.grid.height), min(MOST, scene.grid.width))
        print(f"\npixels that differ from a map with wider context, windows of {tile}, margin {margin}")
        for name, share in disagreement(mapper, scene, tile, margin, area):
            found[name] = share
            print(f"  {name:<32}{100 * share:6.2f} %", flush=True)
    assert found["fade 1.00 margins, all cuts"] < found["core"]


def test_fading_costs_a_part_of_the_work_on_the_host():
    found = {}
    print("\ncollecting labels, CPU-ms a megapixel, windows of 512, margin 64")
    for name, cost in collecting(512, 64):
        found[name] = cost
        print(f"  {name:<32}{cost:6.1f}", flush=True)
    assert found["core"] < found["fade 1.00 margins"]


@pytest.mark.parametrize("side", [4096, 8192])
def test_shards_would_run_windows_twice(side):
    """Were all cuts to fade, a shard would have to run the windows above and to the left of it too; those after it need not be run."""
    layout = plan(side, side, 1088, 64, 32)
    told = {}
    for count in (2, 4, 8, 16):
        parts = cut(layout, Window(0, 0, side, side), "core", batch=1, count=count, holds_data=everywhere)
        told[count] = sum(windows_that_end_after(layout, part) for part in parts if part) / len(layout)
    print(f"\n{side}²: windows run in shards ÷ windows: ", "  ".join(f"{count} shards {times:.2f}" for count, times in told.items()))
    assert told[2] > 1.1


def windows_that_end_after(layout: Plan, part: Window) -> int:
    """Return how many windows own a pixel of ``part``, or end where it begins and fade into it."""
    cores = [layout.placement(*divmod(number, len(layout.cols))).core for number in range(len(layout))]
    return sum(
        core.row < part.stop[0] and core.stop[0] >= part.row and core.col < part.stop[1] and core.stop[1] >= part.col for core in cores
    )


def everywhere(rows, cols):
    return np.ones((len(rows) - 1, len(cols) - 1), bool)
