"""How good a mask is: the confusion matrix and the scores read off it, and boundary IoU, both accumulated over strips and scenes.

Pixels whose label or prediction is IGNORE (255) take no part. The mean IoU is taken over the classes that are *present in the
labels*: a class that no label pixel has is shown per class, but does not move the mean (a wrong guess of it already costs the class
that was really there).

Masks are compared without torch. What is on an accelerator is counted there, by torchmetrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from rsdistill.geo.classes import IGNORE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Figures of one evaluation; every per-class array has the order of ``names``."""

    names: tuple[str, ...]
    confusion: NDArray[np.int64]
    """(K, K) pixels: rows are labels, columns predictions."""
    boundary: NDArray[np.float64] | None = None
    """(K,) boundary IoU of each class, NaN for a class with no boundary pixel; None where it was not measured."""

    @property
    def pixels(self) -> NDArray[np.int64]:
        """(K,) labelled pixels of each class."""
        return self.confusion.sum(1)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; NaN for a class that neither labels nor predictions have."""
        hits = np.diag(self.confusion)
        return _ratio(hits, self.confusion.sum(0) + self.confusion.sum(1) - hits)

    @property
    def f1(self) -> NDArray[np.float64]:
        """(K,) harmonic mean of precision and recall; NaN as in :attr:`iou`."""
        return _ratio(2 * np.diag(self.confusion), self.confusion.sum(0) + self.confusion.sum(1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present in the labels; NaN without a labelled pixel."""
        return _mean(self.iou[self.pixels > 0])

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that were named right; NaN without a labelled pixel."""
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    @property
    def boundary_iou(self) -> float:
        """Mean boundary IoU over the classes present in the labels; NaN where it was not measured."""
        return float("nan") if self.boundary is None else _mean(self.boundary[self.pixels > 0])

    def as_dict(self) -> dict[str, Any]:
        """Return what ``metrics.json`` holds; figures that do not exist are None."""
        per_class = zip(self.names, self.iou, self.f1, self.pixels, strict=True)
        return {
            "miou": _figure(self.miou),
            "pixel_accuracy": _figure(self.pixel_accuracy),
            "boundary_iou": _figure(self.boundary_iou),
            "per_class": {name: {"iou": _figure(iou), "f1": _figure(f1), "pixels": int(n)} for name, iou, f1, n in per_class},
            "confusion": self.confusion.tolist(),
        }


class Confusion:
    """A (K, K) count of pixels by label (row) and prediction (column), filled strip by strip or batch by batch."""

    def __init__(self, classes: int) -> None:
        self.matrix = np.zeros((classes, classes), np.int64)
        self.unpredicted = 0
        """Labelled pixels for which there is no prediction."""

    def update(self, prediction: "NDArray[np.uint8] | Tensor", label: "NDArray[np.uint8] | Tensor") -> None:
        """Count class indices of one shape, arrays or tensors; those that are IGNORE in either take no part."""
        count = _count_arrays if isinstance(prediction, np.ndarray) and isinstance(label, np.ndarray) else _count_tensors
        counts = count(prediction, label, len(self.matrix))
        self.matrix += counts[:, :-1]
        self.unpredicted += int(counts[:, -1].sum())

    def add(self, other: "Confusion") -> None:
        """Take over what ``other`` counted."""
        self.matrix += other.matrix
        self.unpredicted += other.unpredicted

    def scores(self, names: Sequence[str], boundary: "Boundary | None" = None) -> Scores:
        """Return the scores of all that was counted so far."""
        return Scores(tuple(names), self.matrix.copy(), None if boundary is None else boundary.iou)


class Boundary:
    """Boundary IoU of each class, fed with a scene's rows from top to bottom, scene after scene.

    Only the pixels of a region that lie within ``d`` pixels (chessboard distance) of its contour are compared, with ``d`` 2 % of the
    scene's diagonal and at least 1. As in the authors' measure the rim of the scene is a contour; so is the edge of ignored pixels,
    in labels and prediction alike. Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.
    Memory: the rows of one strip and 2·d more.
    """

    share = 0.02

    def __init__(self, classes: int) -> None:
        self.intersection = np.zeros(classes, np.int64)
        self.union = np.zeros(classes, np.int64)
        self.distance = 1
        self._rows = np.empty((2, 0, 0), np.uint8)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) boundary IoU of the scenes finished so far; NaN for a class without a boundary pixel."""
        return _ratio(self.intersection, self.union)

    def start(self, height: int, width: int) -> None:
        """Begin a scene of ``height`` × ``width`` pixels."""
        self.distance = max(1, round(self.share * hypot(height, width)))
        self._rows = np.full((2, self.distance, width), IGNORE, np.uint8)

    def update(self, prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        """Take the next rows of the scene, (h, W) class indices or IGNORE."""
        known = (label != IGNORE) & (prediction != IGNORE)
        rows = np.where(known, np.stack([prediction, label]), np.uint8(IGNORE))
        self._rows = np.concatenate([self._rows, rows], axis=1)
        self._count(2 * self.distance)

    def finish(self) -> None:
        """Count the last rows of the scene."""
        rim = np.full((2, self.distance, self._rows.shape[2]), IGNORE, np.uint8)
        self._rows = np.concatenate([self._rows, rim], axis=1)
        self._count(2 * self.distance)

    def _count(self, keep: int) -> None:
        """Count the rows whose neighbours are all known, and keep the last ``keep`` rows for the next ones."""
        if self._rows.shape[1] <= keep:
            return
        core = slice(self.distance, self._rows.shape[1] - self.distance)
        guess, truth = self._rows[0, core], self._rows[1, core]
        guess_edge, truth_edge = (_near_contour(rows, self.distance)[core] for rows in self._rows)
        classes = len(self.union)
        both = _count_classes(truth[guess_edge & truth_edge & (guess == truth)], classes)
        self.intersection += both
        self.union += _count_classes(guess[guess_edge], classes) + _count_classes(truth[truth_edge], classes) - both
        self._rows = self._rows[:, -keep:].copy()


def _count_arrays(prediction: Any, label: Any, classes: int) -> NDArray[np.int64]:
    """(K, K + 1) pixels by label and prediction; the last column is of labelled pixels without a prediction."""
    labelled = label != IGNORE
    truth = label[labelled].astype(np.intp)
    guess = np.minimum(prediction[labelled], classes).astype(np.intp)
    return np.bincount(truth * (classes + 1) + guess, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _count_tensors(prediction: Any, label: Any, classes: int) -> NDArray[np.int64]:
    """As :func:`_count_arrays`, on the device of ``prediction``."""
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    guess = torch.as_tensor(prediction).reshape(-1).long()
    truth = torch.as_tensor(label, device=guess.device).reshape(-1).long()
    counts = multiclass_confusion_matrix(guess.clamp(max=classes), truth, classes + 1, ignore_index=IGNORE, validate_args=False)
    return np.asarray(counts[:-1].cpu().numpy(), np.int64)


def _near_contour(rows: NDArray[np.uint8], distance: int) -> NDArray[np.bool_]:
    """True where the square of ``distance`` pixels around a pixel holds another class than its own."""
    size = 2 * distance + 1
    low = minimum_filter(rows, size, mode="constant", cval=IGNORE)
    high = maximum_filter(rows, size, mode="constant", cval=IGNORE)
    return np.asarray(low != high)


def _count_classes(values: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    return np.bincount(values, minlength=IGNORE + 1)[:classes]


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _figure(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
