"""What a network makes of a scene's context, kept in files: made by whoever needs it first, read by all others."""

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsdistill.errors import LockError
from rsdistill.geo.files import atomic
from rsdistill.geo.locking import locked
from rsdistill.models.context import Canvas

WAIT_SECONDS = 0.2
"""Between two looks for a canvas that another process is making."""


class CanvasStore:
    """A folder of canvases of one scene under one model."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it must be empty, or left by the same model on the same scene."""
        self._folder = folder

    def get(self, name: str, device: torch.device, make: Callable[[], Canvas]) -> Canvas:
        """Return the canvas called ``name``; where there is none, one process makes it and the others wait.

        Raises:
            DiskError: the folder cannot be written.
        """
        return _canvas(self._tensors(name, lambda: _parts(make()), device))

    def pixels(self, name: str, make: Callable[[], tuple[NDArray[Any], NDArray[np.bool_]]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the pixels called ``name``, (C, h, w) values and (h, w) validity, likewise."""

        def made() -> dict[str, Tensor]:
            values, valid = make()
            return {"values": torch.from_numpy(values), "valid": torch.from_numpy(valid)}

        tensors = self._tensors(name, made, torch.device("cpu"))
        return tensors["values"].numpy(), tensors["valid"].numpy()

    def _tensors(self, name: str, make: Callable[[], dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        path = self._folder / f"{name}.safetensors"
        while not path.exists():
            try:
                with locked(path):
                    if not path.exists():
                        _write(path, make())
            except LockError:
                sleep(WAIT_SECONDS)
        return load_file(path, device=str(device))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic(path) as part:
        save_file({name: values.contiguous() for name, values in tensors.items()}, part)


def _parts(canvas: Canvas) -> dict[str, Tensor]:
    tensors = {"mask": canvas.mask, "logits": canvas.logits, "size": torch.tensor(canvas.size)}
    return tensors | {f"guidance.{level}": maps for level, maps in enumerate(canvas.guidance)}


def _canvas(tensors: dict[str, Tensor]) -> Canvas:
    guidance = tuple(tensors[f"guidance.{level}"] for level in range(len(tensors) - 3))
    height, width = tensors["size"].tolist()
    return Canvas(guidance, tensors["mask"], tensors["logits"], (height, width))
