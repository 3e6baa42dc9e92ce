"""The torch backend: a network in this process, on the processor or an accelerator."""

from collections.abc import Callable, Sequence, Sized
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsdistill.batches import Segmentation
from rsdistill.errors import ConfigError, DeviceError, MemoryLimitError
from rsdistill.geo.windows import Window
from rsdistill.inference.backends import Backend
from rsdistill.inference.exhaustion import ran_out
from rsdistill.inference.lanes import lanes
from rsdistill.inference.reading import Source
from rsdistill.inference.scores import Floats
from rsdistill.inference.settings import Precision
from rsdistill.inference.symmetries import UPRIGHT
from rsdistill.methods.base import upsample
from rsdistill.models.network import Network
from rsdistill.models.pointwise import quicken
from rsdistill.reporting import SILENT, Progress

if TYPE_CHECKING:
    from rsdistill.inference.canvas import SceneCanvas

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Normalisation(Protocol):
    """What a backend needs of a model card."""

    @property
    def classes(self) -> Sized:
        """One entry a class."""

    @property
    def mean(self) -> Sequence[float]:
        """Of each band, in the scene's units."""

    @property
    def std(self) -> Sequence[float]:
        """Of each band, in the scene's units."""

    @property
    def bands(self) -> Sequence[int]:
        """Of the scene, 1-based."""

    @property
    def canvas_margin(self) -> int | None:
        """Context pixels around a tile that must be seen, where it is known."""


class TorchBackend(Backend):
    """A torch network in this process: a loaded model, or one that is being trained."""

    _canvas: "SceneCanvas | None" = None

    def __init__(
        self,
        model: Network,
        card: Normalisation,
        *,
        device: str = "auto",
        precision: Precision = "float32",
        scene: Source | None = None,
        bands: Sequence[int] | None = None,
        compiled: bool = False,
        canvases: Path | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Move ``model``, which has to be in eval mode, to ``device``.

        Args:
            model: a network whose answer depends on its window alone, or on its window and the context of ``scene``.
            card: mean and standard deviation of each band, and the classes.
            device: ``auto`` or the name of a torch device.
            precision: type that convolutions are computed in; logits are float32 in any case.
            scene: what will be mapped, from top to bottom; only a network that needs context has to know it before.
            bands: of ``scene``, 1-based, those of the card by default.
            compiled: let torch compile the network when the first batch comes.
            canvases: folder where what the network makes of the context is kept for other processes.
            progress: told when memory does not suffice for a batch.

        Raises:
            DeviceError: the device is not there.
            ConfigError: the network needs context, and no scene is given or it is to be compiled.
        """
        self.stride, self.classes = model.stride, len(card.classes)
        self.device = find_device(device)
        self._dtype = DTYPES[precision]
        self._model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        quicken(model, self.device)
        self._mean = torch.tensor(card.mean, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
        self._std = torch.tensor(card.std, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
        self._most: int | None = None
        self._progress, self._turn = progress, UPRIGHT
        self._forward: Callable[[Tensor], Segmentation] = compile_network(self._model) if compiled else self._model
        if model.needs_context and compiled:
            raise ConfigError("a network that reads the scene's context is not compiled", hint="leave --compile out")
        if model.needs_context:
            if scene is None:
                raise ConfigError("this network needs the scene's context", hint="give the backend the scene")
            from rsdistill.inference.canvas import SceneCanvas  # with it comes the library of encoders, which a linear network does without

            self._canvas = SceneCanvas(model, scene, bands or card.bands, self._image, margin=card.canvas_margin, folder=canvases)
        self._lanes = lanes(self.device, one_stream=self._canvas is not None) if self.device.type == "cuda" else None
        self.ahead = 0 if self._lanes is None else 1

    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """As the base class."""
        parts = [logits.cpu().numpy() for logits in self._parts(images, valid, windows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def labels(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> NDArray[np.uint8]:
        """As the base class; on an accelerator only the labels cross the bus."""
        if self.device.type == "cpu":
            return super().labels(images, valid, windows)
        return np.concatenate([logits.argmax(1).to(torch.uint8).cpu().numpy() for logits in self._parts(images, valid, windows)])

    def start(
        self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window], *, scores: bool
    ) -> Callable[[], NDArray[Any]]:
        """As the base class; on CUDA the host goes on while pixels, network and answer are on their way."""
        if self._lanes is None and (scores or self.device.type == "cpu"):
            return super().start(images, valid, windows, scores=scores)
        if self._lanes is None:
            labels = self.labels(images, valid, windows)
            return lambda: labels
        lane = next(self._lanes)
        with lane.entered():
            parts = self._parts(lane.pinned(images), valid, windows)
            return lane.fetch(torch.cat([part if scores else part.argmax(1).to(torch.uint8) for part in parts]))

    def turned(self, quarters: int, mirrored: bool) -> "TorchBackend":
        """As the base class: the same network, which sees the scene's context turned likewise."""
        twin = copy(self)
        twin._turn = (quarters, mirrored)
        return twin

    def _parts(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> list[Tensor]:
        """Run a batch, in halves (and from then on in no larger pieces) when memory does not suffice."""
        count = len(windows)
        size = min(count, self._most or count)
        if size < count:
            pieces = [slice(first, first + size) for first in range(0, count, size)]
            return [part for piece in pieces for part in self._parts(images[piece], valid[piece], windows[piece])]
        try:
            return [self._logits(images, valid, windows)]
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if count == 1:
                sides = " x ".join(map(str, images.shape[-2:]))
                raise MemoryLimitError(
                    f"a window of {sides} pixels needs more memory than {self.device} has", hint="use a smaller --tile"
                ) from None
        self._most = count // 2
        self._progress.warn(f"{count} windows at once need more memory than {self.device} has: {self._most} from here on")
        return self._parts(images, valid, windows)

    def _logits(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        with torch.inference_mode(), torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            image, _ = self._image(images, valid)
            answer = self._forward(image) if self._canvas is None else self._canvas.decode(image, windows, self._turn)
            return upsample(answer.logits.float(), size)

    def _image(self, images: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Return pixels as the network takes them, and their validity, on its device."""
        known = torch.from_numpy(valid).to(self.device, non_blocking=True)
        return normalise(torch.from_numpy(images).to(self.device, non_blocking=True), known, self._mean, self._std), known


def normalise(raw: Tensor, valid: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (raw − mean) / std as (N, C, H, W) float32 in channels-last order, 0 where ``valid`` (N, H, W) is False."""
    image = raw.to(torch.float32, memory_format=torch.channels_last, copy=True)
    image.sub_(mean).div_(std)
    return image.masked_fill_(~valid[:, None], 0.0)


def compile_network(model: nn.Module) -> Callable[[Tensor], Segmentation]:
    """Return ``model`` so that torch compiles it when it is first called, which raises DeviceError where it cannot."""
    made = torch.compile(model, dynamic=False)

    def forward(image: Tensor) -> Segmentation:
        try:
            return made(image)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).splitlines()[0]
            raise DeviceError(
                f"torch cannot compile the network here: {reason}", hint="install a C++ compiler, or leave --compile out"
            ) from None

    return forward


def find_device(name: str) -> torch.device:
    """Return the torch device called ``name``; ``auto`` is an accelerator where there is one.

    Raises:
        ConfigError: no device is called so.
        DeviceError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'", hint="auto, cpu, cuda, cuda:1 or mps") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device '{name}' is not there: {str(error).splitlines()[0]}", hint="use --device cpu, or auto") from None
    return device
