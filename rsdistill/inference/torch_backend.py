"""The torch backend: a network in this process, on the processor or an accelerator."""

from collections.abc import Sequence, Sized
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdistill.batches import Segmentation
from rsdistill.errors import ConfigError, DeviceError, MemoryLimitError
from rsdistill.geo.windows import Window
from rsdistill.inference.backends import Backend
from rsdistill.inference.scores import Floats
from rsdistill.methods.base import upsample
from rsdistill.models.network import Network

Precision = Literal["float32", "bf16", "fp16"]
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


class Guide(Protocol):
    """The context of a scene, encoded once: what a network that needs context is run through."""

    def decode(self, image: Tensor, windows: Sequence[Window]) -> Segmentation:
        """Return the network's answer for (N, C, T, T) normalised tiles that lie at ``windows``."""


class TorchBackend(Backend):
    """A torch network in this process: a loaded model, or one that is being trained."""

    def __init__(
        self, model: Network, card: Normalisation, *, device: str = "auto", precision: Precision = "float32", canvas: Guide | None = None
    ) -> None:
        """Move ``model``, which has to be in eval mode, to ``device``.

        Args:
            model: a network whose answer depends on its window alone, or on its window and ``canvas``.
            card: mean and standard deviation of each band, and the classes.
            device: ``auto`` or the name of a torch device.
            precision: type that convolutions are computed in; logits are float32 in any case.
            canvas: the scene's context, for a network that needs it.

        Raises:
            DeviceError: the device is not there.
            ConfigError: the network needs context and none is given.
        """
        if model.needs_context and canvas is None:
            raise ConfigError("this network needs the scene's context", hint="give it a canvas, see rsdistill.inference.canvas")
        self.stride, self.classes = model.stride, len(card.classes)
        self.device = find_device(device)
        self._dtype = DTYPES[precision]
        self._model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._canvas = canvas
        self._mean = torch.tensor(card.mean, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
        self._std = torch.tensor(card.std, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
        self._most: int | None = None

    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """As the base class."""
        return np.concatenate([logits.cpu().numpy() for logits in self._parts(images, valid, windows)])

    def labels(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> NDArray[np.uint8]:
        """As the base class; on an accelerator only the labels cross the bus."""
        if self.device.type == "cpu":
            return super().labels(images, valid, windows)
        return np.concatenate([logits.argmax(1).to(torch.uint8).cpu().numpy() for logits in self._parts(images, valid, windows)])

    def _parts(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> list[Tensor]:
        """Run a batch, in halves (and from then on in no larger pieces) when memory does not suffice."""
        count = len(windows)
        size = min(count, self._most or count)
        if size < count:
            pieces = [slice(first, first + size) for first in range(0, count, size)]
            return [part for piece in pieces for part in self._parts(images[piece], valid[piece], windows[piece])]
        try:
            return [self._logits(images, valid, windows)]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if count == 1:
                size = " x ".join(map(str, images.shape[-2:]))
                raise MemoryLimitError(
                    f"a window of {size} pixels needs more memory than {self.device} has", hint="use a smaller --tile"
                ) from None
        self._most = count // 2
        return self._parts(images, valid, windows)

    def _logits(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        with torch.inference_mode(), torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            image = normalise(torch.from_numpy(images).to(self.device), torch.from_numpy(valid).to(self.device), self._mean, self._std)
            answer = self._model(image) if self._canvas is None else self._canvas.decode(image, windows)
            return upsample(answer.logits.float(), size)


def normalise(raw: Tensor, valid: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (raw − mean) / std as (N, C, H, W) float32 in channels-last order, 0 where ``valid`` (N, H, W) is False."""
    image = raw.to(torch.float32, memory_format=torch.channels_last, copy=True)
    image.sub_(mean).div_(std)
    return image.masked_fill_(~valid[:, None], 0.0)


def find_device(name: str) -> torch.device:
    """Return the torch device called ``name``; ``auto`` is an accelerator where there is one.

    Raises:
        DeviceError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device '{name}' is not there: {str(error).splitlines()[0]}", hint="use --device cpu, or auto") from None
    return device


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)
