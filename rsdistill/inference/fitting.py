"""How a scene fits a model: which of its bands are read, whether its pixels are of a kind that the model knows, and what is odd."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rsdistill.errors import SceneError
from rsdistill.geo.bands import match_bands
from rsdistill.geo.ground import ground_size
from rsdistill.geo.scenes import Scene
from rsdistill.models.card import ModelCard

PIXEL_SIZE_RATIO = 1.2
"""A pixel size that differs from the card's by more is worth a warning."""


def bands_for(scene: Scene, card: ModelCard, model: Path) -> tuple[int, ...]:
    """Return the bands of ``scene`` that the model in the file ``model`` reads, 1-based: by name where both name them.

    Raises:
        SceneError: it has not enough of them, with both numbers; or only some of the names.
    """
    try:
        return match_bands(scene, card.bands, card.band_names or (None,) * len(card.bands))
    except SceneError:
        if scene.count >= max(card.bands):
            raise
        raise SceneError(
            f"{scene.path} has {scene.count} bands, {model} reads bands {_listed(card.bands)}",
            hint="--bands says which bands to read instead",
        ) from None


def check_type(scene: Scene, card: ModelCard, model: Path) -> None:
    """Refuse values that the model was not trained on.

    Raises:
        SceneError: the scene's type does not convert to the card's without loss.
    """
    if card.dtype and not np.can_cast(scene.dtype, card.dtype, "safe"):
        raise SceneError(f"{scene.path} is {scene.dtype}, {model} was trained on {card.dtype}", hint="bring both to one scale and type")


def band_notes(scene: Scene, card: ModelCard, bands: tuple[int, ...]) -> Iterator[str]:
    """Yield what a reader has to know of the choice of ``bands``."""
    wanted = card.band_names or ()
    if bands != card.bands:
        yield f"{scene.path}: bands {', '.join(map(str, wanted))} are {_listed(bands)} here, by their names (--bands chooses others)"
    elif len(scene.color_bands) > max(bands):
        yield f"{scene.path} has {len(scene.color_bands)} bands; bands {_listed(bands)} are read (--bands chooses others)"


def name_doubts(scene: Scene, card: ModelCard, model: Path, bands: tuple[int, ...]) -> Iterator[str]:
    """Yield that the scene calls ``bands`` otherwise than the model's training scenes did."""
    names = [scene.descriptions[band - 1] for band in bands]
    wanted = card.band_names or (None,) * len(bands)
    if any(ours and theirs and ours != theirs for ours, theirs in zip(names, wanted, strict=True)):
        called = f"{', '.join(map(str, names))}, where {model} was trained on {', '.join(map(str, wanted))}"
        yield f"{scene.path} calls its bands {_listed(bands)} {called} (--bands chooses others)"


def size_doubts(scene: Scene, card: ModelCard, model: Path) -> Iterator[str]:
    """Yield that the scene's pixels have another size on the ground than those of the training scenes."""
    known, ours = card.pixel_size, ground_size(scene.grid)
    if known is None or ours is None:
        return
    theirs = (known, known) if isinstance(known, int | float) else known
    if any(max(a / b, b / a) > PIXEL_SIZE_RATIO for a, b in zip(ours, theirs, strict=True)):
        yield (
            f"{scene.path} has pixels of {ours[0]:.3g} m, {model} was trained on {theirs[0]:.3g} m: expect a worse map "
            "(--pixel-size resamples)"
        )


def _listed(bands: tuple[int, ...]) -> str:
    return ", ".join(map(str, bands))
