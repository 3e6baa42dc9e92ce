"""Batches of a real tile set: what is in them, that they repeat, and that context and tile show the same ground."""

from itertools import chain

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F

from rsdistill.batches import IGNORE
from rsdistill.data import augment
from rsdistill.data.dataset import BatchSource, Composition, Share, TileReader, normalise
from rsdistill.data.loading import loader, parts_of
from rsdistill.data.pools import Pool, split_labelled
from rsdistill.errors import TileSetError
from rsdistill.geo.tiles import Tile
from rsdistill.geo.windows import Window


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, torch.Tensor))


def test_a_tile_is_what_rasterio_reads_there(tile_set):
    reader = TileReader(tile_set)
    place = tile_set.of_split("train")[3]
    pixels, valid, label = reader.read(place)
    rows, cols = place.window.slices
    with rasterio.open(tile_set.path(tile_set.card.scenes[0].path)) as scene:
        assert np.array_equal(pixels, np.where(scene.dataset_mask()[rows, cols] > 0, scene.read()[:, rows, cols], 0))
        assert np.array_equal(valid, scene.dataset_mask()[rows, cols] > 0)
    assert pixels.dtype == np.uint8
    with rasterio.open(tile_set.path(tile_set.card.scenes[0].label)) as labels:
        ids = labels.read(1)[rows, cols]
    known = label != IGNORE
    assert np.array_equal(np.array(tile_set.table.ids)[label[known]], ids[known])
    assert not known[~valid].any()


def test_a_tile_is_what_torchgeo_reads_there(tile_set):
    datasets = pytest.importorskip("torchgeo.datasets")
    path = tile_set.path(tile_set.card.scenes[0].path)
    dataset = datasets.RasterDataset(str(path), bands=None)
    place = next(one for one in tile_set.of_split("train") if one.window.row >= 64 and one.window.col >= 64)
    pixels, _, _ = TileReader(tile_set).read(place)
    with rasterio.open(path) as scene:
        left, bottom, right, top = rasterio.windows.bounds(
            rasterio.windows.Window(place.window.col, place.window.row, place.window.width, place.window.height), scene.transform
        )
        size = scene.res[0]
    sample = dataset[slice(left, right, size), slice(bottom, top, size)]["image"]
    assert torch.equal(sample.to(torch.uint8), torch.from_numpy(pixels))


def test_step_t_is_a_function_of_seed_and_t(tile_set):
    make = Composition(contexts=2, tiles=3, with_context=True)
    first, again, other = (BatchSource(tile_set, make, seed=seed) for seed in (0, 0, 1))
    assert same(first[5], again[5])
    assert not same(first[5], first[6])
    assert not same(first[5], other[5])
    loaded = list(loader(first, parts_of(range(4, 7)), workers=1))
    assert all(same(batch, again[step]) for batch, step in zip(loaded, range(4, 7), strict=True))


def test_one_pass_shows_every_labelled_tile_once(tile_set):
    pool = Pool([one for one in tile_set.of_split("train") if one.labelled], tile_set)
    order = [pool.draw(position, 1, (0, 0))[0][0] for position in range(2 * len(pool))]
    assert sorted(order[: len(pool)]) == list(range(len(pool)))
    assert sorted(order[len(pool) :]) == list(range(len(pool)))
    assert order[: len(pool)] != order[len(pool) :]


def test_context_under_the_box_shows_the_ground_of_the_tile(tile_set):
    """Tiles of 64 pixels start on multiples of the ratio here or not; those that do are area means of their own pixels in the context."""
    source = BatchSource(tile_set, Composition(contexts=6, tiles=2, with_context=True), seed=0)
    compared = 0
    for step in range(4):
        batch = source[step]
        context = batch.context
        for number in range(len(batch.image)):
            side = context.image.shape[-1]
            top, left, bottom, right = (context.box[number] * side).tolist()
            if not all(float(edge).is_integer() for edge in (top, left, bottom, right)) or not batch.valid[number].all():
                continue
            cut = context.image[context.index[number], :, int(top) : int(bottom), int(left) : int(right)]
            mean = F.avg_pool2d(batch.image[number].float(), tile_set.card.context_ratio)
            torch.testing.assert_close(cut, mean, atol=0.51, rtol=0)  # context rasters of uint8 scenes are rounded
            compared += 1
    assert compared > 5


def test_tiles_of_a_group_lie_inside_their_context(tile_set):
    batch = BatchSource(tile_set, Composition(contexts=2, tiles=4, with_context=True), seed=0)[0]
    assert batch.context.index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (batch.context.box >= 0).all()
    assert (batch.context.box <= 1).all()
    assert len({tuple(box) for box in batch.context.box.tolist()}) > 2


def test_without_context_none_is_read(tile_set):
    assert BatchSource(tile_set, Composition(contexts=3, tiles=1), seed=0)[0].context is None


def test_normalised_pixels_have_the_statistics_of_the_card_and_nodata_is_zero(tile_set):
    mean, std = torch.tensor(tile_set.card.mean), torch.tensor(tile_set.card.std)
    source = BatchSource(tile_set, Composition(contexts=8, tiles=1), seed=0)
    batches = [normalise(source[step], mean, std, torch.device("cpu")) for step in range(len(source.labelled) // 8)]
    pixels = torch.cat([batch.image.movedim(1, -1)[batch.valid] for batch in batches])
    assert pixels.mean(0).abs().max() < 0.2
    assert (pixels.std(0) - 1).abs().max() < 0.2
    assert all(not batch.image.movedim(1, -1)[~batch.valid].any() for batch in batches)
    assert all((batch.label[~batch.valid] == IGNORE).all() for batch in batches)


def test_hidden_labels_make_unlabelled_tiles(tile_set):
    source = BatchSource(tile_set, Composition(contexts=2, tiles=1, unlabelled=2), seed=0, labels_fraction=0.25)
    batch = source[0]
    assert batch.labelled.tolist() == [True, True, False, False]
    assert (batch.label[2:] == IGNORE).all()
    assert (batch.label[:2] != IGNORE).any()
    labelled, hidden = split_labelled(tile_set.of_split("train"), 0.25, 0)
    everything = [one for one in tile_set.of_split("train") if one.labelled]
    assert len(labelled) == max(1, round(len(everything) / 4))
    assert {one.window for one in labelled} | {one.window for one in hidden} >= {one.window for one in everything}
    assert not {one.window for one in labelled} & {one.window for one in hidden}


def test_which_labels_a_fraction_keeps_is_seeded(tile_set):
    keep = [split_labelled(tile_set.of_split("train"), 0.5, seed)[0] for seed in (0, 0, 1)]
    assert keep[0] == keep[1]
    assert keep[0] != keep[2]


def test_a_tile_set_without_labels_is_refused(tile_set):
    bare = tile_set.__class__(tile_set.folder, tile_set.card, tile_set.table, tuple(t._replace(labelled=False) for t in tile_set.tiles))
    with pytest.raises(TileSetError, match="no labelled training tile"):
        BatchSource(bare, Composition(), seed=0)


def test_a_tile_at_the_rim_of_a_small_scene_is_filled_with_invalid_pixels(tile_set):
    short = Tile(0, Window(480, 470, 32, 42), "train", True)
    pixels, valid, label = TileReader(tile_set).read(short)
    assert pixels.shape == (3, 64, 64)
    assert not valid[32:].any()
    assert not valid[:, 42:].any()
    assert (label[~valid] == IGNORE).all()


@pytest.mark.parametrize("make", [Composition(4, 2, 4, True), Composition(8, 1, 0), Composition(4, 1, 8)])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shares_of_a_step_are_the_step_and_its_draws(tile_set, make, parts):
    source = BatchSource(tile_set, make, seed=3, labels_fraction=0.5)

    def tiles_of(batch):
        drawn = augment.draw(batch, torch.Generator().manual_seed(1), strength=0.2)
        groups = batch.groups.numbers if batch.context is None else batch.groups.numbers[batch.context.index]
        return list(zip(*(column.tolist() for column in (groups, batch.place, batch.labelled, *drawn)), strict=True))

    shares = [tiles_of(source.part(7, share)) for share in Share().divided(parts)]
    assert sorted(chain.from_iterable(shares)) == sorted(tiles_of(source[7]))
    assert len({len(share) for share in shares}) == 1


def test_a_place_finds_the_tile_in_the_tile_set(tile_set):
    batch = BatchSource(tile_set, Composition(contexts=8), seed=0, labels_fraction=0.5)[1]
    for row, place in enumerate(batch.place.tolist()):
        pixels, _, _ = TileReader(tile_set).read(tile_set.tiles[place])
        assert np.array_equal(batch.image[row].numpy(), pixels)


def test_a_context_larger_than_a_window_is_read_in_part(tile_set, monkeypatch):
    monkeypatch.setattr("rsdistill.data.pools.CONTEXT_SIDE", 24)
    batch = BatchSource(tile_set, Composition(contexts=4, tiles=2, with_context=True), seed=0)[0]
    assert batch.context.image.shape == (4, 3, 24, 24)
    with rasterio.open(tile_set.path(tile_set.card.scenes[0].context)) as raster:
        everything = raster.read().astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(everything, (24, 24), axis=(1, 2))
    for image, valid in zip(batch.context.image, batch.context.valid, strict=True):
        found = ((windows == image[:, None, None].numpy()) | ~valid.numpy()).all((0, 3, 4))
        assert found.any()
