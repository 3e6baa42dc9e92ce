"""The model card: what a model file says of itself, read from its header without loading a weight (or torch)."""

import json
import stat
import struct
from pathlib import Path
from typing import Annotated, Any, NotRequired, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator, with_config
from typing_extensions import TypedDict

from rsdistill.errors import CheckpointError, ClassTableError
from rsdistill.geo.classes import ClassTable

FORMAT_VERSION = 1
"""Version of the card that this package writes, and the only one it reads."""

HEADER_KEY = "rsdistill"
"""Key of the safetensors metadata that holds the card as JSON."""

MAX_HEADER_BYTES = 16 << 20
"""A longer safetensors header is refused unread; a network of 10 000 tensors needs 1.5 MB."""


@with_config(ConfigDict(extra="allow"))
class ClassEntry(TypedDict):
    """One class of a card, in the order of the network's logits."""

    id: Annotated[int, Field(ge=0, le=65534)]
    name: Annotated[str, Field(min_length=1)]
    color: NotRequired[str]
    sources: NotRequired[list[int]]


def _one_based(bands: tuple[int, ...]) -> tuple[int, ...]:
    if min(bands, default=0) < 1:
        raise ValueError("bands are counted from 1")
    return bands


def _pixel_type(dtype: str) -> str:
    if dtype not in np.sctypeDict or np.dtype(dtype).kind not in "uif":
        raise ValueError(f"{dtype!r} is no type of pixels")
    return dtype


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelCard(BaseModel):
    """What a model must be given and what it answers.

    Only ``format_version``, ``arch``, ``classes``, ``bands``, ``mean`` and ``std`` are needed, so that a person can write a card by
    hand; keys that this version does not know are kept.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), ser_json_inf_nan="strings")

    format_version: int = FORMAT_VERSION
    arch: str
    arch_args: dict[str, Any] = {}
    """Options of the architecture; those not named have its defaults."""
    classes: Annotated[tuple[ClassEntry, ...], Field(min_length=1, max_length=255)]
    """Class of each logit: ``id`` in masks, ``name`` and ``color``."""
    bands: Annotated[tuple[int, ...], AfterValidator(_one_based), Field(max_length=4096)]
    """Bands of the scene that the network reads, counted from 1."""
    mean: tuple[FiniteFloat, ...]
    std: tuple[Positive, ...]
    """The network is given (raw - mean) / std for each band, in the scene's own units, and 0 where not valid."""
    band_names: tuple[str | None, ...] | None = None
    dtype: Annotated[str, AfterValidator(_pixel_type)] | None = None
    nodata: float | tuple[float | None, ...] | None = None
    pixel_size: Positive | tuple[Positive, Positive] | None = None
    """Height and width of a pixel of the training scenes, in metres where their CRS is known."""
    ignore: tuple[int, ...] = ()
    """Label values that took no part in training."""
    tile: Annotated[int, Field(ge=1)] | None = None
    margin: Annotated[int, Field(ge=0)] | None = None
    """Pixels at a tile's rim whose answers are not kept."""
    context_ratio: Annotated[int, Field(ge=1)] | None = None
    canvas_margin: Annotated[int, Field(ge=0)] | None = None
    """Context pixels that a window of the context is read wider on each side, where a scene's context is taken in windows."""
    method: str | None = None
    teachers: tuple[str, ...] = ()
    """Digest of each teacher's file."""
    data: str | None = None
    """Digest of the tile set's card, which holds the digest of every scene."""
    seed: int | None = None
    versions: dict[str, str] = {}
    """Of this package and those that decide what it computes; ``commit`` where it was installed from a repository."""

    @model_validator(mode="after")
    def _one_number_a_band(self) -> Self:
        for name in ("mean", "std", "band_names"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.bands):
                raise ValueError(f"{name} has {len(values)} values for {len(self.bands)} bands")
        ids = [entry["id"] for entry in self.classes]
        if len(set(ids)) < len(ids):
            raise ValueError(f"class ids {ids} are not all different")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the logits."""
        return tuple(entry["name"] for entry in self.classes)


def read_card(path: str | Path) -> ModelCard:
    """Return the card in the header of the model file ``path``.

    Raises:
        CheckpointError: no such file, not a safetensors file, one without our card, or a card that says something impossible.
    """
    path = Path(path)
    metadata = _read_header(path).get("__metadata__")
    text = metadata.get(HEADER_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path} holds tensors but no '{HEADER_KEY}' card: it is not a model of this toolkit",
            hint="encoder weights go to --weights; a model is made by train-teacher or distill",
        )
    return _parse_card(path, text)


def _read_header(path: Path) -> dict[str, Any]:
    """Return the JSON header of the safetensors file ``path``; the reasons to refuse it come first, so that nothing hangs or swells."""
    hint = "name a .safetensors model made by train-teacher or distill"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"model {path} is not a regular file", hint=hint)
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
                raise CheckpointError(f"{path} is a pickle, which can run code when it is read", hint=hint)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= status.st_size - 8:
                raise CheckpointError(f"{path} is not a safetensors file, or it is cut short ({status.st_size} bytes)", hint=hint)
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"the header of {path} claims {length} bytes; {MAX_HEADER_BYTES} are read at most", hint=hint)
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read model {path}: {error.strerror or error}", hint=hint) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not JSON", hint=hint) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a table", hint=hint)
    try:
        end = 8 + length + max((int(one["data_offsets"][1]) for name, one in header.items() if name != "__metadata__"), default=0)
    except (LookupError, TypeError, ValueError):
        raise CheckpointError(f"{path} is not a safetensors file: a tensor has no place in it", hint=hint) from None
    if end != status.st_size:
        size = f"{status.st_size} bytes, not {end}"
        raise CheckpointError(f"{path} is not a whole safetensors file: it has {size}", hint="it was cut short or damaged")
    return header


def _parse_card(path: Path, text: str) -> ModelCard:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"the card in {path} is not JSON", hint="the file was damaged or written by another program") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has card format_version {version!r}; this version of rsdistill reads {FORMAT_VERSION}",
            hint="use the version of rsdistill that wrote it, or train anew",
        )
    try:
        card = ModelCard.model_validate_json(text)
        ClassTable.from_card([dict(entry) for entry in card.classes], card.ignore)
        return card
    except ClassTableError as error:
        raise CheckpointError(f"the card in {path}: {error}", hint=error.hint) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"the card in {path}: {where}: {reason}", hint="correct the card") from None
