"""Where tiles lie: complete, clamped, the same whatever torchgeo is installed, and never on both sides of a split."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform

from rsdistill.data.sampling import choose_block, choose_tile, cut_blocks, lay_tiles, share_out, spoiled_tiles
from rsdistill.geo.tiles import SPLITS, Tile
from rsdistill.geo.windows import Grid, Window

lengths = st.integers(1, 150)
tiles = st.sampled_from([8, 16, 32])


@settings(max_examples=120, deadline=None)
@given(lengths, lengths, tiles, st.integers(0, 7), st.integers(0, 50), st.integers(0, 50))
def test_tiles_cover_their_block_and_nothing_else(height, width, tile, overlap, row, col):
    block = Window(row, col, height, width)
    covered = np.zeros((row + height, col + width), int)
    laid = lay_tiles(block, tile, overlap)
    for window in laid:
        assert window.intersection(block) == window
        assert (window.height, window.width) == (min(tile, height), min(tile, width))
        covered[window.slices] += 1
    assert (covered[block.slices] > 0).all()
    assert covered.sum() == covered[block.slices].sum()
    assert len(set(laid)) == len(laid) == np.prod([max(0, -(-(side - tile) // (tile - overlap))) + 1 for side in (height, width)])
    assert laid == sorted(laid)


def test_the_windows_are_these_on_every_version_of_torchgeo():
    assert [window[:2] for window in lay_tiles(Window(8, 16, 70, 50), 32, 8)] == [(r, c) for r in (8, 32, 46) for c in (16, 34)]
    assert lay_tiles(Window(0, 0, 33, 31), 32) == [Window(0, 0, 32, 31), Window(1, 0, 32, 31)]
    assert lay_tiles(Window(5, 6, 7, 9), 32) == [Window(5, 6, 7, 9)]
    assert lay_tiles(Window(0, 0, 1, 1), 32, 31) == [Window(0, 0, 1, 1)]


@settings(max_examples=120, deadline=None)
@given(lengths, lengths, tiles, st.integers(1, 4))
def test_blocks_part_a_scene(height, width, tile, factor):
    owners = np.zeros((height, width), int)
    for block in cut_blocks(height, width, factor * tile, tile):
        owners[block.slices] += 1
        assert block.height >= min(tile, height)
        assert block.width >= min(tile, width)
    assert (owners == 1).all()


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, tiles, st.integers(0, 7), st.integers(1, 3), st.integers(0, 5))
def test_no_pixel_is_in_two_splits(height, width, tile, overlap, factor, seed):
    blocks = cut_blocks(height, width, factor * tile, tile)
    pixels = np.random.default_rng(seed).integers(0, 100, (len(blocks), 3))
    splits = share_out(pixels, {"val": 0.2, "test": 0.2}, seed)
    owner = np.full((height, width), -1)
    for block, split in zip(blocks, splits, strict=True):
        for window in lay_tiles(block, tile, overlap):
            rank = SPLITS.index(split)
            assert np.isin(owner[window.slices], (-1, rank)).all()
            owner[window.slices] = rank
    labelled = (pixels.sum(axis=1) > 0).sum()
    if labelled >= 3:
        assert set(splits) == set(SPLITS)
    if labelled == 2:
        assert {"train", "val"} <= set(splits)


def test_classes_are_shared_out_better_than_by_chance():
    random = np.random.default_rng(0)
    pixels = (random.random((40, 5)) ** 6 * 10_000).astype(np.int64)
    splits = np.array(share_out(pixels, {"val": 0.2, "test": 0.1}, 3))
    assert [(splits == split).sum() for split in SPLITS] == [28, 8, 4]

    def error(chosen: np.ndarray) -> float:
        shares = pixels / pixels.sum(axis=0)
        return sum(np.abs(shares[chosen == split].sum(axis=0) - share).sum() for split, share in (("val", 0.2), ("test", 0.1)))

    chance = [error(random.permutation(splits)) for _ in range(200)]
    assert error(splits) < np.quantile(chance, 0.05)
    assert share_out(pixels, {"val": 0.2, "test": 0.1}, 3) == splits.tolist()
    assert share_out(pixels, {"val": 0.2, "test": 0.1}, 4) != splits.tolist()


def test_blocks_without_labels_are_for_training():
    pixels = np.zeros((6, 2), np.int64)
    pixels[[1, 4]] = 10
    splits = share_out(pixels, {"val": 0.5}, 0)
    assert sorted([splits[1], splits[4]]) == ["train", "val"]
    assert all(splits[i] == "train" for i in (0, 2, 3, 5))
    assert share_out(pixels[:2], {"val": 0.5}, 0) == ["train", "train"]
    assert share_out(np.zeros((0, 2), np.int64), {"val": 0.5}, 0) == []


@pytest.mark.parametrize(("size", "side"), [(5000, 512), (2048, 512), (1536, 384), (1000, 192), (650, 128), (100, 64), (20, 64)])
def test_small_scenes_get_small_tiles(size, side):
    assert choose_tile([(size, size)]) == side


def test_a_small_scene_still_has_several_tiles_of_each_split():
    for size in (300, 650, 777, 1000):
        tile = choose_tile([(size, size)])
        blocks = cut_blocks(size, size, choose_block([(size, size)], tile), tile)
        splits = share_out(np.ones((len(blocks), 1), np.int64), {"val": 0.2}, 0)
        laid = [split for block, split in zip(blocks, splits, strict=True) for _ in lay_tiles(block, tile)]
        assert laid.count("val") >= 3
        assert laid.count("train") >= 12


def test_large_scenes_get_large_blocks():
    assert choose_block([(100_000, 100_000)], 512) == 8 * 512
    assert choose_block([(512, 512)], 512) == 512


def grid(left: float, crs: str | None = "EPSG:32633") -> Grid:
    return Grid(64, 64, crs and CRS.from_string(crs), Affine(2, 0, left, 0, -2, 4_000_000))


def test_training_tiles_on_ground_of_another_scenes_validation_are_spoiled():
    whole = Window(0, 0, 64, 64)

    def spoiled(left: float, first: str, second: str, crs: str | None = "EPSG:32633") -> set[int]:
        return spoiled_tiles([Tile(0, whole, first, True), Tile(1, whole, second, True)], [grid(500_000, crs), grid(left, crs)])

    assert spoiled(500_100, "train", "val") == {0}
    assert spoiled(500_100, "test", "train") == {1}
    assert spoiled(500_100, "test", "val") == {1}
    assert spoiled(500_100, "train", "train") == set()
    assert spoiled(500_128, "train", "val") == set()
    assert spoiled(500_127, "train", "val") == set()
    assert spoiled(500_000, "train", "val", None) == set()


def test_the_ground_is_compared_across_crs():
    west, south, east, north = 15.0, 36.13, 15.0014, 36.1315
    other = Grid(64, 64, CRS.from_epsg(4326), Affine((east - west) / 64, 0, west, 0, (south - north) / 64, north))
    (x,), (y,) = transform("EPSG:4326", "EPSG:32633", [west], [north])
    near = Grid(64, 64, CRS.from_epsg(32633), Affine(2, 0, x, 0, -2, y))
    far = Grid(64, 64, CRS.from_epsg(32633), Affine(2, 0, x + 500, 0, -2, y))
    window = Window(0, 0, 64, 64)
    laid = [Tile(scene, window, split, True) for scene, split in enumerate(("train", "train", "val"))]
    found = spoiled_tiles(laid, [near, far, other])
    assert found == {0}
