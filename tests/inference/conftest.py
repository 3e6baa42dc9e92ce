"""A scene that lives in memory and a network that is a function of each pixel: what they give is known exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray

from rsdistill.geo.windows import Grid, Window
from rsdistill.inference.backends import Backend


@dataclass
class ArrayScene:
    """Looks like a scene; counts what is read, and refuses to read past its edge."""

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    block_shape: tuple[int, int] = (16, 16)
    reads: list[Window] = field(default_factory=list)

    @property
    def grid(self) -> Grid:
        return Grid(*self.valid.shape, None, Affine.identity())

    def read(self, window: Window, bands: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        assert window.intersection(self.grid.window) == window
        self.reads.append(window)
        valid = self.valid[window.slices]
        return self.image[[band - 1 for band in bands]][:, *window.slices] * valid, valid

    def reopen(self) -> "ArrayScene":
        return self

    def __enter__(self) -> "ArrayScene":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Oracle(Backend):
    """Reads the class off the first band: logit k is −(pixel − k)², whatever the window."""

    def __init__(self, classes: int, stride: int = 1) -> None:
        self.classes, self.stride = classes, stride
        self.seen: list[Window] = []

    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> NDArray[np.float32]:
        self.seen += windows
        assert images.shape[2] % self.stride == 0
        assert images.shape[3] % self.stride == 0
        codes = np.arange(self.classes, dtype=np.float32)[:, None, None]
        return -((images[:, :1].astype(np.float32) - codes) ** 2)


@pytest.fixture(scope="session")
def array_scene() -> type[ArrayScene]:
    return ArrayScene


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
