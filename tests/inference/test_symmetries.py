"""The mean over eight symmetries: of a backend that knows where it looks, turned there and back."""

import numpy as np

from rsdistill.inference.backends import Backend
from rsdistill.inference.symmetries import D4Backend, symmetries, turned


class Corner(Backend):
    """One class a pixel's value, another where the pixel lies: larger to the lower right."""

    classes = 2

    def __call__(self, images, valid, windows):
        height, width = images.shape[-2:]
        ramp = np.add.outer(np.arange(height), np.arange(width)).astype(np.float32)
        assert (images[:, 0][~valid] == 0).all(), "pixels and validity turn together"
        return np.stack([images[:, 0].astype(np.float32), np.broadcast_to(ramp, (len(images), height, width))], axis=1)


def test_the_mean_is_of_all_eight_and_in_place(rng):
    images = rng.integers(1, 200, (3, 1, 5, 8)).astype(np.uint8)
    valid = rng.random((3, 5, 8)) > 0.3
    images *= valid[:, None]
    answer = D4Backend(Corner())(images, valid, [None] * 3)
    np.testing.assert_allclose(answer[:, 0], images[:, 0], rtol=1e-6)
    np.testing.assert_allclose(answer[:, 1], (5 - 1 + 8 - 1) / 2, rtol=1e-6)
    assert np.array_equal(D4Backend(Corner()).labels(images, valid, [None] * 3), (images[:, 0] < 5.5).astype(np.uint8))


def test_there_are_eight_symmetries():
    square = np.arange(9).reshape(3, 3)
    seen = {tuple(np.rot90(square[:, ::-1] if mirrored else square, quarters).ravel()) for quarters, mirrored in symmetries()}
    assert len(seen) == 8


def test_turned_pixels_lie_forward_in_memory():
    """Torch takes no others, and numpy calls an array with a side of one pixel contiguous whatever its strides."""
    for shape in [(1, 1, 1), (2, 1, 5), (2, 5, 1), (2, 3, 4)]:
        for symmetry in symmetries():
            assert min(turned(np.zeros(shape, np.uint8), *symmetry).strides) > 0
