"""What the engine asks of a network: raw pixels of some windows in, scores at the pixels' own resolution out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.windows import Window
from rsdistill.inference.scores import Floats, argmax


class Backend(ABC):
    """A network at work."""

    stride: int = 1
    """Sides of the windows it takes are multiples of this."""
    classes: int
    """How many scores a pixel gets."""
    ahead: int = 0
    """Batches that are best under way while another is started."""

    @abstractmethod
    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """Return (N, K, T, T) logits, up to a constant a pixel.

        Args:
            images: (N, C, T, T) pixels as the scene has them; 0 where not valid.
            valid: (N, T, T).
            windows: where each lies in the scene; smaller than T where the scene ends before.
        """

    def ranks(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """Return (N, K, T, T) figures that order a pixel's classes as its logits do: enough for labels."""
        return self(images, valid, windows)

    def labels(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> NDArray[np.uint8]:
        """Return the (N, T, T) index of the largest logit, the first of equals."""
        return np.stack([argmax(ranks) for ranks in self.ranks(images, valid, windows)])

    def start(
        self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window], *, scores: bool
    ) -> Callable[[], NDArray[Any]]:
        """Start on a batch and return what waits for its answer: (N, K, T, T) logits.

        Without ``scores``, ranks are enough, or (N, T, T) labels where they are cheaper than figures to hand over. ``images`` and ``valid``
        are not read any more once this returns.
        """
        answer = self(images, valid, windows) if scores else self.ranks(images, valid, windows)
        return lambda: answer

    def turned(self, quarters: int, mirrored: bool) -> Self:
        """Return this backend for windows that are mirrored left to right, then turned by quarters against the clock."""
        return self
