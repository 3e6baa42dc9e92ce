"""The scene made small: area means and majority labels on a grid of a fixed ratio, computed from every pixel.

Overviews are never used: the common nearest ones show one pixel of 64 and shift a texture's mean by dozens of digital numbers.
"""

from collections.abc import Iterable
from math import ceil
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from rsdistill.geo.classes import IGNORE
from rsdistill.geo.windows import Grid, Window

RATIO = 8
"""Scene pixels along the side of one context pixel."""
THUMBNAIL = 8
"""Context pixels along the side of one pixel of the thumbnail of a scene."""


def context_grid(grid: Grid, ratio: int = RATIO) -> Grid:
    """The grid of a scene's context: ceil(height / ratio) × ceil(width / ratio) pixels from the same corner."""
    return Grid(ceil(grid.height / ratio), ceil(grid.width / ratio), grid.crs, grid.transform @ Affine.scale(ratio))


def context_window(window: Window, ratio: int = RATIO) -> Window:
    """The context pixels that a window whose corner lies on the context grid becomes; the last row and column may be partly filled."""
    return Window(window.row // ratio, window.col // ratio, ceil(window.height / ratio), ceil(window.width / ratio))


def area_mean(values: NDArray[Any], valid: NDArray[np.bool_], ratio: int = RATIO) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Average the valid pixels of each ratio × ratio block.

    Args:
        values: (C, h, w) of any real type, finite.
        valid: (h, w).
        ratio: side of a block in pixels; blocks that the border cuts hold what is there.

    Returns:
        (C, ceil(h / ratio), ceil(w / ratio)) means in the type of ``values`` (rounded to even where it is whole), 0 where no pixel of
        the block is valid; and where any is.
    """
    count = _block_sums(valid[None], ratio)[0]
    sums = _block_sums(values if valid.all() else np.where(valid, values, 0), ratio)
    mean = sums / np.maximum(count, 1)
    if np.issubdtype(values.dtype, np.integer):
        mean = np.rint(mean)
    return mean.astype(values.dtype), count > 0


def thumbnail(rows: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Average a scene's context over blocks of :data:`THUMBNAIL` pixels a side.

    Args:
        rows: (C, h, w) context and (h, w) validity from top to bottom, all but the last of a height that is a multiple of it.

    Returns:
        (C, ceil(height / THUMBNAIL), ceil(width / THUMBNAIL)) means and their validity.
    """
    parts = [area_mean(values, valid, THUMBNAIL) for values, valid in rows]
    return np.concatenate([values for values, _ in parts], axis=1), np.concatenate([valid for _, valid in parts])


def majority(index: NDArray[np.uint8], classes: int, ratio: int = RATIO) -> NDArray[np.uint8]:
    """The commonest class of each ratio × ratio block of class indices.

    Args:
        index: (h, w) class index 0…K−1, or 255 where there is none.
        classes: K.
        ratio: side of a block in pixels.

    Returns:
        (ceil(h / ratio), ceil(w / ratio)); the lower index of two equally common ones; 255 where less than half of the block has a class.
    """
    votes = np.stack([_block_sums((index == k)[None], ratio)[0] for k in range(classes)])
    size = _block_sums(np.ones((1, *index.shape), bool), ratio)[0]
    return np.where(2 * votes.sum(axis=0) >= size, votes.argmax(axis=0), IGNORE).astype(np.uint8)


def _block_sums(values: NDArray[Any], ratio: int) -> NDArray[np.float64]:
    """(C, ceil(h / ratio), ceil(w / ratio)) sums over blocks; exact for whole numbers below 2⁵³."""
    count, height, width = values.shape
    rows, cols = np.arange(0, height, ratio), np.arange(0, width, ratio)
    narrow = np.add.reduceat(values, rows, axis=1, dtype=np.float64)
    return np.asarray(np.add.reduceat(narrow, cols, axis=2)).reshape(count, len(rows), len(cols))
