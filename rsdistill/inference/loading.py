"""A model file made ready to map scenes: its card, what windows suit it, and the backend that runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rsdistill.errors import CheckpointError, ConfigError
from rsdistill.inference.backends import Backend
from rsdistill.inference.reading import Source
from rsdistill.inference.settings import Engine, Precision
from rsdistill.models import ARCHITECTURES
from rsdistill.models.card import ModelCard, read_card
from rsdistill.reporting import SILENT, Progress

if TYPE_CHECKING:
    from rsdistill.inference.onnx_backend import Graphs
    from rsdistill.models.network import Network

DEFAULT_TILE = 1024
"""Side of windows where nothing speaks against it: the larger, the smaller the share of margins that passes the network twice."""
MOST_OVERLAP = 1.25
"""Pixels that pass the network per pixel of an endless scene: windows are larger where a wide margin would ask for more. On a real one,
sides that are multiples of the stride bring it to 1.3 at most."""
TRAINED_TILE = 512
"""Side of the tiles that a network was trained on, where its card does not say."""
POOLING = ("pspnet", "deeplabv3plus")
"""Architectures that average over their whole tile, so that only tiles of the size they were trained on mean what was learned."""


@dataclass(frozen=True)
class Windows:
    """Side and margin of the windows that a model is run on."""

    tile: int
    margin: int


class Choice(NamedTuple):
    """What runs a network, in which arithmetic."""

    backend: Engine
    precision: Precision = "float32"

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


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

    @property
    def reference(self) -> Choice:
        """What runs it unless something else is asked for, and what others are compared with."""
        return Choice("onnx" if self.network is None else "torch")

    @cached_property
    def graphs(self) -> "Graphs":
        """Names the ONNX file for windows of (height, width)."""
        if self.network is None:
            return lambda size: self.path
        from rsdistill.inference.graphs import NetworkGraphs

        return NetworkGraphs(self.network, self.card)

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
        enough = 2 * self._usual_margin / (1 - MOST_OVERLAP**-0.5)
        side = trained if self.card.arch in POOLING else max(trained * ceil(DEFAULT_TILE / trained), enough)
        return ceil(side / self.stride) * self.stride

    def _default_margin(self, side: int) -> int:
        return min(self._usual_margin, side // 4)

    @property
    def _usual_margin(self) -> int:
        if self.stride == 1:
            return 0
        return self.card.margin if self.card.margin is not None else TRAINED_TILE // 8


def find_model(work: Path, named: Path | None) -> Path:
    """Return the model file that ``named`` means: a path, or a name in the workspace; the student without a name.

    Raises:
        CheckpointError: there is no such model; the models in the workspace are named.
    """
    if named is not None and (named.is_file() or named.suffix in (".safetensors", ".onnx")):
        return named
    inside = work / f"{named or 'student'}.safetensors"
    if inside.is_file():
        return inside
    there = ", ".join(sorted(file.stem for file in work.glob("*.safetensors"))) or "no model"
    made = "train-teacher and distill make models; one elsewhere is named by its path"
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


def modules_for(path: Path, card: ModelCard) -> tuple[str, ...]:
    """Return the modules that a process needs to map with the model in the file ``path``, so that it can load them ahead."""
    if path.suffix.lower() == ".onnx":
        return ("rsdistill.inference.sharding", "rsdistill.inference.onnx_backend")
    network, _, _ = ARCHITECTURES.get(card.arch, "").partition(":")
    return (
        "rsdistill.inference.sharding",
        "rsdistill.inference.torch_backend",
        "rsdistill.models.checkpoints",
        *([network] if network else []),
    )


def load(path: Path, threads: int | None = None) -> Model:
    """Load the model file ``path``.

    Building some networks runs them once. That happens on ``threads`` threads already, as many as there are cores by default: processes
    that each take all cores wait for each other longer than they work.

    Raises:
        CheckpointError: it is none of ours, or damaged.
        MissingExtraError: an exported model, and onnxruntime is not installed.
    """
    if path.suffix.lower() == ".onnx":
        from rsdistill.inference.onnx_backend import onnx_tile

        side = onnx_tile(path)
        return Model(path, read_model_card(path), side, side)
    from rsdistill.models.checkpoints import load_model

    _use(threads)
    network, card = load_model(path)
    return Model(path, card, network.stride, network=network)


def _use(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def backend_for(
    model: Model,
    scene: Source,
    bands: Sequence[int],
    *,
    choice: Choice,
    device: str = "auto",
    threads: int | None = None,
    compiled: bool = False,
    canvases: Path | None = None,
    progress: Progress = SILENT,
) -> Backend:
    """Return what maps ``scene`` with ``model``; the context of a network that needs it is kept in the folder ``canvases``.

    Raises:
        DeviceError: the device is not there.
        MissingExtraError: the engine is not installed.
        ConfigError: the engine cannot do what was asked.
    """
    refuse_unfit(model, choice, device)
    if choice.backend == "torch":
        from rsdistill.inference.torch_backend import TorchBackend

        _use(threads)
        how: dict[str, Any] = {"scene": scene, "bands": bands, "compiled": compiled, "canvases": canvases, "progress": progress}
        return TorchBackend(cast("Network", model.network), model.card, device=device, precision=choice.precision, **how)
    if choice.backend == "onnx":
        from rsdistill.inference.onnx_backend import OnnxBackend

        return OnnxBackend(model.graphs, model.card, stride=model.stride, threads=threads)
    from rsdistill.inference.openvino_backend import OpenVinoBackend

    return OpenVinoBackend(model.graphs, model.card, stride=model.stride, precision=choice.precision, threads=threads)


def refuse_unfit(model: Model, choice: Choice, device: str) -> None:
    """Raise ConfigError where ``choice`` cannot run ``model`` on ``device``, whatever is installed."""
    graph = choice.backend != "torch"
    if not graph and model.network is None:
        raise ConfigError(f"{model.path} is an exported model, which torch does not run", hint="use --backend onnx or openvino")
    if graph and model.needs_context:
        raise ConfigError(f"{model.path} reads the scene's context, which only torch gives it", hint="leave --backend out")
    if graph and device not in ("auto", "cpu"):
        raise ConfigError(f"--backend {choice.backend} runs on the processor, not on {device}", hint="leave --device or --backend out")
    if choice.backend == "onnx" and choice.precision != "float32":
        raise ConfigError(f"onnxruntime computes in float32, not in {choice.precision}", hint="leave --precision or --backend out")
