"""The records that pass between data, models and methods: Batch, Context, Segmentation."""

from typing import NamedTuple

from torch import Tensor

IGNORE = 255
"""Label of pixels that take no part in any loss or metric: unlabelled, ignored or nodata."""


class Context(NamedTuple):
    """The scene (or a wide window of it) made small, and where each tile lies in it."""

    image: Tensor
    """(M, C, h, w) float, normalised; 0 where not valid."""
    valid: Tensor
    """(M, h, w) bool."""
    box: Tensor
    """(B, 4) float32 top, left, bottom, right of each tile in [0, 1] of its context image (pixel edges)."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    """(B,) int64: which context image each tile belongs to."""
    label: Tensor | None = None
    """(M, h, w) int64 majority label of each context pixel, IGNORE where none; None outside training."""
    wider: "Context | None" = None
    """Thumbnails of the whole scenes, and where each context image lies in its own; without a valid pixel where there is none."""


class Groups(NamedTuple):
    """Where a part of a step's batch lies in the whole; a group is the tiles that share a context, or one tile without any."""

    numbers: Tensor
    """(M,) int64 positions of this part's groups among all."""
    whole: int
    """How many groups the step has."""


class Batch(NamedTuple):
    """Tiles on their way through a network."""

    image: Tensor
    """(B, C, H, W) float, normalised; 0 where not valid."""
    label: Tensor
    """(B, H, W) int64 class index 0…K−1, or IGNORE."""
    valid: Tensor
    """(B, H, W) bool: data, not nodata."""
    labelled: Tensor
    """(B,) bool; False means that the label is full of IGNORE."""
    context: Context | None = None
    box_in_scene: Tensor | None = None
    """(B, 4) float32 top, left, bottom, right of each tile in [0, 1] of its whole scene."""
    place: Tensor | None = None
    """(B,) int64 position of each tile in the tile set, by which what is kept of it is found."""
    groups: Groups | None = None
    """Set where the batch is part of a larger one; what is drawn for a step is drawn for all of it."""


class Segmentation(NamedTuple):
    """What a network says of a batch, at its own stride."""

    logits: Tensor
    """(B, K, h, w) before softmax, before the final up-sampling."""
    features: Tensor
    """(B, D, h, w) the last map before the classifier."""
    stages: tuple[Tensor, ...] = ()
    """Encoder maps from fine to coarse, where a network offers them."""
    aux: Tensor | None = None
    """(B, K, h', w') logits of an auxiliary head, where there is one."""
