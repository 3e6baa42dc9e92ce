"""What a network makes of a scene's context, kept in files: made by whoever needs it first, read by all others."""

from collections.abc import Callable
from pathlib import Path
from time import sleep

import torch
from safetensors.torch import load_file, save_file

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
        path = self._folder / f"{name}.safetensors"
        while not path.exists():
            try:
                with locked(path):
                    if not path.exists():
                        _write(path, make())
            except LockError:
                sleep(WAIT_SECONDS)
        return _read(path, device)


def _write(path: Path, canvas: Canvas) -> None:
    tensors = {"mask": canvas.mask, "logits": canvas.logits, "size": torch.tensor(canvas.size)}
    tensors |= {f"guidance.{level}": maps for level, maps in enumerate(canvas.guidance)}
    with atomic(path) as part:
        save_file({name: values.contiguous() for name, values in tensors.items()}, part)


def _read(path: Path, device: torch.device) -> Canvas:
    tensors = load_file(path, device=str(device))
    guidance = tuple(tensors[f"guidance.{level}"] for level in range(len(tensors) - 3))
    height, width = tensors["size"].tolist()
    return Canvas(guidance, tensors["mask"], tensors["logits"], (height, width))
