"""A step that does not fit is taken in parts, and stays the same step."""

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file

from rsdistill.commands.distill import distill
from rsdistill.commands.tile import tile
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.data.dataset import Composition, Share
from rsdistill.errors import MemoryLimitError
from rsdistill.inference.exhaustion import ran_out
from rsdistill.models.linear import Linear
from rsdistill.reporting import Silent
from rsdistill.training.memory import halved

QUICK = {"batch": 8, "validate_every": 3, "steps": 4, "threads": 1, "lr": 0.05}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return a tile set of a scene without nodata and with a label everywhere, so that all parts of a batch weigh the same."""
    folder = tmp_path_factory.mktemp("full")
    random = np.random.default_rng(0)
    grid = {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 500_000, 0, -1, 4_000_000), "height": 256, "width": 256}
    for name, pixels in {"scene": random.integers(1, 255, (3, 256, 256)), "labels": random.integers(1, 4, (1, 256, 256))}.items():
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", count=len(pixels), dtype="uint8", **grid) as file:
            file.write(pixels.astype(np.uint8))
    classes = folder / "classes.toml"
    classes.write_text("".join(f'[[class]]\nid = {k}\nname = "c{k}"\ncolor = "#0000{k}0"\n' for k in (1, 2, 3)))
    tile(scenes=[folder / "scene.tif"], labels=[folder / "labels.tif"], classes=classes, work=folder / "work", tile=32)
    return folder / "work" / "tiles"


class Heard(Silent):
    def __init__(self):
        self.warned = []

    def warn(self, text):
        self.warned.append(text)


@pytest.fixture
def small(monkeypatch):
    """Let a linear network, while it trains, take two tiles at a time."""
    original = Linear.forward

    def forward(self, image, context=None):
        if self.training and len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, image, context)

    monkeypatch.setattr(Linear, "forward", forward)


def test_the_step_is_halved_until_it_fits_and_stays_the_same(full, tmp_path, small):
    heard = Heard()
    train_teacher(tiles=full, out=tmp_path / "parts.safetensors", arch="linear", progress=heard, **QUICK)
    assert [line for line in heard.warned if "parts" in line] == [
        f"out of memory at step 0: steps are taken in {parts} parts from here" for parts in (2, 4)
    ]


def test_parts_add_up_to_the_whole_step(full, tmp_path, monkeypatch, request):
    train_teacher(tiles=full, out=tmp_path / "whole.safetensors", arch="linear", accumulate=2, **QUICK)
    request.getfixturevalue("small")
    train_teacher(tiles=full, out=tmp_path / "parts.safetensors", arch="linear", accumulate=2, **QUICK)
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-5)


def test_the_measure_of_the_terms_is_taken_in_parts_too(full, tmp_path, small):
    train_teacher(tiles=full, out=tmp_path / "teacher.safetensors", arch="linear", **QUICK)
    heard = Heard()
    distill(tiles=full, work=tmp_path, student="linear", calibrate=2, progress=heard, **QUICK)
    assert sum("out of memory" in line for line in heard.warned) == 2


def test_one_tile_that_does_not_fit_ends_the_run_with_a_way_out(full, tmp_path, monkeypatch):
    def forward(self, image, context=None):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Linear, "forward", forward)
    with pytest.raises(MemoryLimitError, match="with 1 tiles at a time") as caught:
        train_teacher(tiles=full, out=tmp_path / "t.safetensors", arch="linear", **QUICK)
    assert "--tile" in caught.value.hint


@pytest.mark.gpu
def test_a_real_accelerator_that_is_full_is_taken_in_parts(full, tmp_path):
    torch.cuda.set_per_process_memory_fraction(200e6 / torch.cuda.get_device_properties(0).total_memory)
    heard = Heard()
    options = {**QUICK, "batch": 64, "lr": 1e-3}
    train_teacher(tiles=full, out=tmp_path / "t.safetensors", device="cuda", contexts=64, progress=heard, **options)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory" in line for line in heard.warned)


def test_memory_is_told_from_other_faults():
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert ran_out(MemoryError())
    assert ran_out(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert ran_out(RuntimeError("could not create a primitive"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_halves_are_the_same_groups():
    half = halved([Share(1, 2)], Composition(8, 1, 8), ranks=1)
    assert half == [Share(2, 4), Share(3, 4)]
    assert [row for share in half for row in share.rows(8)] == list(Share(1, 2).rows(8))
    with pytest.raises(MemoryLimitError, match="several devices"):
        halved([Share()], Composition(8), ranks=2)
