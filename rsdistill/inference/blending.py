"""How overlapping windows become one map: each pixel from the window that owns it, or from all that see it, weighted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.windows import Placement, Plan, Window
from rsdistill.inference.heap import paged
from rsdistill.inference.scores import Floats, argmax, confidence, softmax

Blend = Literal["core", "hann", "gaussian"]

INVALID = 255
"""Class index of pixels without data."""


class Strip(NamedTuple):
    """Some finished rows of the map, from the left edge of what is mapped to its right edge."""

    row: int
    """The first of them, counted from the first row of what is mapped."""
    labels: NDArray[np.uint8]
    """(h, W) class index 0…K−1, or 255 where there is no data."""
    confidence: Floats | None = None
    """(h, W) probability of the label; NaN where there is no data."""
    probabilities: Floats | None = None
    """(K, h, W), sum 1; NaN where there is no data."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside labels."""

    confidence: bool = False
    probabilities: bool = False

    @property
    def scores(self) -> bool:
        """True where labels alone are not enough."""
        return self.confidence or self.probabilities


def window_weights(blend: Blend, size: int) -> Floats:
    """Return the ``size`` weights of one side of a window: highest in the middle, above 0 at the rim.

    Both shapes are separable. Above 0 at the rim, because the scene's own rim is seen by the rim of one window only.
    """
    place = np.arange(size) + 0.5
    if blend == "hann":
        return (np.sin(np.pi * place / size) ** 2).astype(np.float32)
    if blend == "gaussian":
        return np.exp(-0.5 * ((place - size / 2) / (size / 8)) ** 2).astype(np.float32)
    return np.ones(size, np.float32)


class CoreKeeper:
    """Each pixel from the window whose core it lies in: no sums, so nothing but the strip itself is kept."""

    def __init__(self, plan: Plan, area: Window, classes: int, wanted: Wanted) -> None:
        self._plan, self._area, self._classes, self._wanted = plan, area, classes, wanted
        self._strip: Strip | None = None

    def reach(self, placement: Placement) -> Window:
        """Return the pixels of what is mapped that a window has a say in: its core."""
        return placement.core.intersection(self._area)

    def add(self, placement: Placement, output: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        """Take the (K, T, T) logits or (T, T) labels of the next window in its row, and which of the pixels read get a label."""
        owned = self.reach(placement)
        if self._strip is None:
            self._strip = self._empty(owned.row, owned.height)
        strip = self._strip
        source = owned.relative_to(placement.read).slices
        target = owned.relative_to(Window(self._area.row + strip.row, self._area.col, 0, 0)).slices
        rows, cols = source
        inside, kept = output[..., rows, cols], keep[source]
        labels = inside if inside.ndim == 2 else argmax(output[:, rows])[:, cols]  # whole rows lie in one piece, and take less time
        np.copyto(strip.labels[target], labels, where=True if kept.all() else kept)
        if strip.confidence is not None:
            np.copyto(strip.confidence[target], confidence(inside), where=kept)
        if strip.probabilities is not None:
            np.copyto(strip.probabilities[:, *target], softmax(inside), where=kept)

    def finish(self, row: int) -> Strip | None:
        """Return the rows that the windows in ``row`` of the plan own, after all of them were added."""
        _, top, bottom = self._plan.rows[row]
        top, bottom = max(top, self._area.row), min(bottom, self._area.stop[0])
        strip, self._strip = self._strip or self._empty(top, bottom - top), None
        return strip

    def _empty(self, row: int, height: int) -> Strip:
        shape = (height, self._area.width)
        return Strip(
            row - self._area.row,
            paged(shape, INVALID, np.uint8),
            paged(shape, np.nan, np.float32) if self._wanted.confidence else None,
            paged((self._classes, *shape), np.nan, np.float32) if self._wanted.probabilities else None,
        )


class Blender:
    """Each pixel from all windows that see it: the weighted mean of their logits, which is a geometric mean of probabilities.

    A constant added to all logits of a pixel changes nothing, so a backend that gives log-probabilities blends to the same map.
    Weights do not depend on the class: labels need no division. The buffer is (K, tile height, width of what is mapped).
    """

    def __init__(self, plan: Plan, area: Window, classes: int, wanted: Wanted, blend: Blend) -> None:
        self._plan, self._area, self._wanted = plan, area, wanted
        self._weights = window_weights(blend, plan.tile[0])[:, None] * window_weights(blend, plan.tile[1])
        self._row_sums = _sums(plan.rows, plan.height, window_weights(blend, plan.tile[0]))
        self._col_sums = _sums(plan.cols, plan.width, window_weights(blend, plan.tile[1]))[area.col : area.stop[1]]
        self._first = area.row
        self._logits = np.zeros((classes, plan.tile[0], area.width), np.float32)
        self._keep = np.zeros((plan.tile[0], area.width), bool)

    def reach(self, placement: Placement) -> Window:
        """Return the pixels of what is mapped that a window has a say in: all it sees."""
        return placement.read.intersection(self._area)

    def add(self, placement: Placement, output: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        """Take the (K, T, T) logits of the next window in its row, and which of the pixels read get a label."""
        seen = self.reach(placement)
        source = seen.relative_to(placement.read).slices
        target = seen.relative_to(Window(self._first, self._area.col, 0, 0)).slices
        weights = self._weights[source]
        for total, logits in zip(self._logits[:, *target], output[:, *source], strict=True):
            total += logits * weights
        self._keep[target] |= keep[source]

    def finish(self, row: int) -> Strip | None:
        """Return the rows that windows below ``row`` of the plan do not see, after those up to it were added; None where there are none."""
        later = self._plan.rows[row + 1][0] if row + 1 < len(self._plan.rows) else self._plan.height
        until = min(later, self._area.stop[0])
        count = until - self._first
        if count <= 0:
            return None
        strip = self._strip(self._first, self._logits[:, :count], self._keep[:count])
        for plane in (*self._logits, self._keep):
            plane[: len(plane) - count] = plane[count:]
            plane[len(plane) - count :] = 0
        self._first = until
        return strip

    def _strip(self, row: int, logits: Floats, keep: NDArray[np.bool_]) -> Strip:
        labels = np.where(keep, argmax(logits), np.uint8(INVALID))
        if not self._wanted.scores:
            return Strip(row - self._area.row, labels)
        mean = logits / (self._row_sums[row : row + len(keep), None] * self._col_sums)
        return Strip(
            row - self._area.row,
            labels,
            np.where(keep, confidence(mean), np.float32(np.nan)) if self._wanted.confidence else None,
            np.where(keep, softmax(mean), np.float32(np.nan)) if self._wanted.probabilities else None,
        )


def accumulator(plan: Plan, area: Window, classes: int, wanted: Wanted, blend: Blend) -> CoreKeeper | Blender:
    """Return what collects the windows of ``plan`` into strips of ``area``."""
    if blend == "core":
        return CoreKeeper(plan, area, classes, wanted)
    return Blender(plan, area, classes, wanted, blend)


def _sums(spans: Sequence[tuple[int, int, int]], length: int, weights: Floats) -> Floats:
    """Return, for each of ``length`` pixels of a side, the sum of the weights of all windows that see it."""
    total = np.zeros(length, np.float32)
    for start, _, _ in spans:
        stop = min(length, start + len(weights))
        total[start:stop] += weights[: stop - start]
    return total
