"""Augmentation: image, label, context and box move together, and one photometric draw serves the tile and its context."""

from typing import NamedTuple

import torch
from kornia.enhance import adjust_brightness, adjust_contrast
from kornia.geometry.transform import hflip
from torch import Tensor

from rsdistill.batches import Batch, Context, Segmentation

ELEMENTS = 8
"""Elements of D4: ``k % 4`` quarter turns counter-clockwise, then a horizontal flip where ``k ≥ 4``. Overhead imagery has no up."""


class Draw(NamedTuple):
    """One draw for a batch of B tiles; tiles that share a context share it too."""

    element: Tensor
    """(B,) int64 element of D4."""
    brightness: Tensor
    """(B,) added to the normalised image."""
    contrast: Tensor
    """(B,) factor of the normalised image."""


def draw(batch: Batch, generator: torch.Generator, *, strength: float) -> Draw:
    """Draw one D4 element, brightness in ±``strength`` and contrast in 1 ± ``strength`` a context (a tile without one).

    A batch that is part of a larger one gets its part of what is drawn for the larger one.
    """
    count = batch.image.shape[0] if batch.context is None else batch.context.image.shape[0]
    mine, whole = batch.groups or (torch.arange(count), count)
    element = torch.randint(ELEMENTS, (whole,), generator=generator)
    brightness = strength * (2 * torch.rand(whole, generator=generator) - 1)
    contrast = 1 + strength * (2 * torch.rand(whole, generator=generator) - 1)
    rows = mine if batch.context is None else mine[batch.context.index.cpu()]
    return Draw(element[rows], brightness[rows], contrast[rows])


def apply(batch: Batch, drawn: Draw) -> Batch:
    """Return the moved and re-lit batch; nodata stays 0."""
    image = _relit(turn(batch.image, drawn.element), drawn)
    valid = turn(batch.valid, drawn.element)
    context = batch.context
    if context is not None:
        first = torch.stack([(context.index.cpu() == m).nonzero()[0, 0] for m in range(context.image.shape[0])])
        each = Draw(*(values[first] for values in drawn))
        context = _moved(context, each)._replace(box=turn_boxes(context.box, drawn.element))
    box = None if batch.box_in_scene is None else turn_boxes(batch.box_in_scene, drawn.element)
    moved = batch._replace(label=turn(batch.label, drawn.element), valid=valid, context=context, box_in_scene=box)
    return moved._replace(image=image * valid[:, None])


def _moved(context: Context, drawn: Draw) -> Context:
    """Return context images moved and re-lit, with thumbnails that are their own one to one; boxes of tiles are left as they were."""
    known = turn(context.valid, drawn.element)
    wider = context.wider
    if wider is not None:
        wider = _moved(wider, drawn)._replace(box=turn_boxes(wider.box, drawn.element))
    image = _relit(turn(context.image, drawn.element), drawn) * known[:, None]
    label = None if context.label is None else turn(context.label, drawn.element)
    return context._replace(image=image, valid=known, label=label, wider=wider)


def turn(maps: Tensor, element: Tensor) -> Tensor:
    """Apply the D4 ``element`` (B,) of each sample to square maps (B, …, h, w)."""
    return torch.stack([turn_one(single, int(k)) for single, k in zip(maps, element, strict=True)])


def turn_one(single: Tensor, element: int) -> Tensor:
    """Apply one D4 element to a map (…, h, w)."""
    turned = torch.rot90(single, element % 4, (-2, -1))
    return turned if element < 4 else hflip(turned)


def inverse(element: Tensor) -> Tensor:
    """Return the D4 element that undoes each ``element``; a flip after any turn undoes itself."""
    return torch.where(element < 4, (4 - element) % 4, element)


def turn_boxes(boxes: Tensor, element: Tensor) -> Tensor:
    """Apply D4 to boxes (B, 4) top, left, bottom, right in [0, 1] of a square image."""
    top, left, bottom, right = boxes.unbind(1)
    turns, flipped = (element % 4).to(boxes.device), (element >= 4).to(boxes.device)
    for quarter in range(1, 4):
        moved = turns >= quarter
        # a quarter turn counter-clockwise takes pixel (r, c) to (1 − c, r)
        top, left, bottom, right = (
            torch.where(moved, 1 - right, top),
            torch.where(moved, top, left),
            torch.where(moved, 1 - left, bottom),
            torch.where(moved, bottom, right),
        )
    left, right = torch.where(flipped, 1 - right, left), torch.where(flipped, 1 - left, right)
    return torch.stack([top, left, bottom, right], dim=1)


def turn_segmentation(output: Segmentation, element: Tensor) -> Segmentation:
    """Apply D4 to a network's output, so that a teacher may see the tile as it lies in the scene."""
    return Segmentation(
        turn(output.logits, element),
        turn(output.features, element),
        tuple(turn(stage, element) for stage in output.stages),
        None if output.aux is None else turn(output.aux, element),
    )


def _relit(image: Tensor, drawn: Draw) -> Tensor:
    contrast, brightness = drawn.contrast.to(image), drawn.brightness.to(image)
    return adjust_brightness(adjust_contrast(image, contrast, clip_output=False), brightness, clip_output=False)
