"""What windows do to a map: how often it differs from a map made with wider context, near the cuts between windows and elsewhere.

A network that sees less of a pixel's surroundings at a window's rim than in its middle decides otherwise there; where nothing but the
network's own uncertainty is at work, both shares are equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import ConfigError
from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import plan
from rsdistill.inference.blending import INVALID, Strip
from rsdistill.inference.engine import strips
from rsdistill.inference.loading import Windows
from rsdistill.inference.mapping import Mapper

NEAR = 16
"""Pixels on each side of a cut that count as near it."""


@dataclass
class Seams:
    """Pixels of some scenes: those near a cut between windows first, then all others."""

    pixels: NDArray[np.int64]
    """(2,) pixels that were compared."""
    differing: NDArray[np.int64]
    """(2,) of these, those whose class differs from the reference."""

    @classmethod
    def none(cls) -> "Seams":
        """Nothing compared yet."""
        return cls(np.zeros(2, np.int64), np.zeros(2, np.int64))

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the shares that differ, near cuts and elsewhere; None where there is no such pixel."""
        near, far = (float(part / whole) if whole else None for part, whole in zip(self.differing, self.pixels, strict=True))
        return {"near": near, "elsewhere": far, "distance": NEAR}


def add_seams(seams: Seams, mapper: Mapper, path: Path) -> None:
    """Map a scene twice, with the windows asked for and with ones of twice the side and a quarter of that as margin, and compare.

    Raises:
        ConfigError: the model takes windows of one size only.
    """
    config = mapper.config
    if mapper.model.fixed_tile is not None:
        raise ConfigError(f"{mapper.path} takes windows of one size, so there is no wider view to compare with", hint="leave --seam out")
    usual = mapper.model.windows(config.tile, config.margin)
    wide = Windows(2 * usual.tile, usual.tile // 2)
    with mapper.open(path) as scene, mapper.open(path) as again:
        frame = mapper.frame(scene)
        layout = plan(scene.grid.height, scene.grid.width, usual.tile, usual.margin, mapper.model.stride)
        near_row, near_col = (_near(spans, length) for spans, length in ((layout.rows, layout.height), (layout.cols, layout.width)))
        near_col = near_col[frame.col : frame.stop[1]]
        for row, ours, reference in aligned(_strips(mapper, scene, usual), _strips(mapper, again, wide)):
            known = (ours != INVALID) & (reference != INVALID)
            rows = near_row[frame.row + row : frame.row + row + len(ours)]
            near = rows[:, None] | near_col
            for place, inside in enumerate((known & near, known & ~near)):
                seams.pixels[place] += inside.sum()
                seams.differing[place] += (ours[inside] != reference[inside]).sum()


def aligned(first: Iterator[Strip], second: Iterator[Strip]) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield (row, labels, labels) of the rows that two streams of strips over the same pixels have both given so far."""
    row = 0
    ours = theirs = np.empty((0, 0), np.uint8)
    for strip in first:
        ours = strip.labels
        while len(ours):
            if not len(theirs):
                theirs = next(second).labels
            height = min(len(ours), len(theirs))
            yield row, ours[:height], theirs[:height]
            row, ours, theirs = row + height, ours[height:], theirs[height:]


def _strips(mapper: Mapper, scene: Scene, windows: Windows) -> Iterator[Strip]:
    return strips(
        scene,
        mapper.backend(scene),
        bands=mapper.bands(scene),
        tile=windows.tile,
        margin=windows.margin,
        blend=mapper.config.blend,
        window=mapper.frame(scene),
    )


def _near(spans: tuple[tuple[int, int, int], ...], length: int) -> NDArray[np.bool_]:
    """(length,) True within :data:`NEAR` pixels of where one window's core ends and the next begins."""
    near = np.zeros(length, bool)
    for _, _, stop in spans[:-1]:
        near[max(0, stop - NEAR) : stop + NEAR] = True
    return near
