"""A model file made ready to map scenes: its card, what windows suit it, and the backend that runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rsdistill.errors import CheckpointError, ConfigError
from rsdistill.inference.backends import Backend
from rsdistill.inference.reading import Source
from rsdistill.models.card import ModelCard, read_card

if TYPE_CHECKING:
    from rsdistill.models.network import Network

Engine = Literal["torch", "onnx"]
Precision = Literal["float32", "bf16", "fp16"]

DEFAULT_TILE = 1024
"""Side of windows where nothing speaks against it: the larger, the smaller the share of margins that passes the network twice."""
TRAINED_TILE = 512
"""Side of the tiles that a network was trained on, where its card does not say."""
POOLING = ("pspnet", "deeplabv3plus")
"""Architectures that average over their whole tile, so that only tiles of the size they were trained on mean what was learned."""


@dataclass(frozen=True)
class Windows:
    """Side and margin of the windows that a model is run on."""

    tile: int
    margin: int


@dataclass
class Model:
    """A model file, loaded."""

    path: Path
    card: ModelCard
    stride: int
    """Sides of windows are multiples of it."""
    fixed_tile: int | None = None
    """The only side of windows that the file takes, if it takes but one."""
    network: "Network | None" = None
    """The torch network; None for an exported model."""

    @property
    def needs_context(self) -> bool:
        """Whether it reads the scene's context beside each tile."""
        return self.network is not None and self.network.needs_context

    def windows(self, tile: int | None, margin: int | None) -> Windows:
        """Return the windows to use: what was asked for, else what the card says, on tiles as large as are useful.

        Raises:
            ConfigError: ``tile`` does not fit the network, or ``margin`` leaves no core.
        """
        side = tile or self.fixed_tile or self._default_tile()
        if self.fixed_tile and side != self.fixed_tile:
            raise ConfigError(f"{self.path} takes tiles of {self.fixed_tile} pixels, not {side}", hint="leave --tile out")
        if side % self.stride:
            near = max(1, round(side / self.stride)) * self.stride
            raise ConfigError(f"tile {side} is not a multiple of {self.stride}, the stride of {self.path}", hint=f"--tile {near} is")
        rim = self._default_margin(side) if margin is None else margin
        if 2 * rim >= side:
            raise ConfigError(f"margin {rim} leaves no core in a tile of {side}", hint="give a larger --tile or a smaller --margin")
        return Windows(side, rim)

    def _default_tile(self) -> int:
        trained = self.card.tile or TRAINED_TILE
        side = trained if self.card.arch in POOLING else trained * ceil(DEFAULT_TILE / trained)
        return ceil(side / self.stride) * self.stride

    def _default_margin(self, side: int) -> int:
        if self.stride == 1:
            return 0
        return min(self.card.margin if self.card.margin is not None else TRAINED_TILE // 8, side // 4)


def find_model(work: Path, named: Path | None) -> Path:
    """Return the model file that ``named`` means: a path, or a name in the workspace; the student without a name.

    Raises:
        CheckpointError: there is no such model; the models in the workspace are named.
    """
    if named is not None and named.exists():
        return named
    inside = work / f"{named or 'student'}.safetensors"
    if inside.exists():
        return inside
    there = ", ".join(sorted(file.stem for file in work.glob("*.safetensors"))) or "no model"
    made = "run rsdistill distill first, or name a model with --model"
    raise CheckpointError(f"no model {named or inside} (the workspace {work} holds {there})", hint=made)


def read_model_card(path: Path) -> ModelCard:
    """Return the card of a model file, without torch.

    Raises:
        CheckpointError: it is none of ours.
    """
    if path.suffix.lower() == ".onnx":
        from rsdistill.inference.onnx_backend import read_onnx_card

        return read_onnx_card(path)
    return read_card(path)


def load(path: Path) -> Model:
    """Load the model file ``path``.

    Raises:
        CheckpointError: it is none of ours, or damaged.
        MissingExtraError: an exported model, and onnxruntime is not installed.
    """
    if path.suffix.lower() == ".onnx":
        from rsdistill.inference.onnx_backend import onnx_tile

        side = onnx_tile(path)
        return Model(path, read_model_card(path), side, side)
    from rsdistill.models.checkpoints import load_model

    network, card = load_model(path)
    return Model(path, card, network.stride, network=network)


def backend_for(
    model: Model,
    scene: Source,
    bands: Sequence[int],
    *,
    device: str = "auto",
    precision: Precision = "float32",
    threads: int | None = None,
) -> Backend:
    """Return what maps ``scene`` with ``model``.

    Raises:
        DeviceError: the device is not there.
        ConfigError: an exported model was asked for what only torch can do.
    """
    if model.network is None:
        from rsdistill.inference.onnx_backend import OnnxBackend

        if precision != "float32":
            raise ConfigError(f"{model.path} runs in float32, not {precision}", hint="leave --precision out, or use the .safetensors model")
        return OnnxBackend(model.path, model.card, threads=threads)
    import torch

    from rsdistill.inference.torch_backend import TorchBackend

    if threads:
        torch.set_num_threads(threads)
    return TorchBackend(model.network, model.card, device=device, precision=precision, scene=scene, bands=bands)
