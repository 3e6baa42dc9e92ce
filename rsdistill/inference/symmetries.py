"""Test-time augmentation: the mean answer over the eight symmetries of the square."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.windows import Window
from rsdistill.inference.backends import Backend
from rsdistill.inference.scores import Floats

Turn = tuple[int, bool]
"""Quarter turns against the clock, after mirroring left to right where that is True."""
UPRIGHT: Turn = (0, False)


class D4Backend(Backend):
    """A backend asked eight times: about each window, turned by each quarter and mirrored.

    The mean is that of logits, the geometric mean of probabilities, as in blending.
    """

    def __init__(self, backend: Backend) -> None:
        """Wrap ``backend``."""
        self._backends = {symmetry: backend.turned(*symmetry) for symmetry in symmetries()}
        self.stride, self.classes = backend.stride, backend.classes

    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """As the base class."""
        total = np.zeros((len(windows), self.classes, *images.shape[-2:]), np.float32)
        for (quarters, mirrored), backend in self._backends.items():
            answer = backend(turned(images, quarters, mirrored), turned(valid, quarters, mirrored), windows)
            total += turned_back(answer, quarters, mirrored)
        return np.divide(total, np.float32(8), out=total)


def symmetries() -> Iterator[Turn]:
    """Yield the eight symmetries of the square."""
    for mirrored in (False, True):
        for quarters in range(4):
            yield quarters, mirrored


def turned(values: NDArray[Any], quarters: int, mirrored: bool) -> NDArray[Any]:
    """Return (…, h, w) values mirrored left to right, then turned by quarters against the clock."""
    values = values[..., ::-1] if mirrored else values
    return np.rot90(values, quarters, axes=(-2, -1)).copy()  # a side of one pixel would keep its backward stride otherwise


def turned_back(values: Floats, quarters: int, mirrored: bool) -> Floats:
    """Undo :func:`turned`."""
    values = np.rot90(values, -quarters, axes=(-2, -1))
    return values[..., ::-1] if mirrored else values
