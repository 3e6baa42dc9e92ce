"""Batches of a real tile set: what is in them, that they repeat, and that context and tile show the same ground."""

from itertools import chain

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F

from rsdistill.batches import IGNORE
from rsdistill.data import augment
from rsdistill.data.dataset import BatchSource, Composition, Share, TileReader, collate, normalise, open_source
from rsdistill.data.loading import loader, parts_of
from rsdistill.data.pools import Pool, split_labelled, thumbnail_window
from rsdistill.errors import TileSetError
from rsdistill.geo.context import area_mean, thumbnail
from rsdistill.geo.tiles import Tile
from rsdistill.geo.windows import Window
from rsdistill.inference.canvas import context_rows


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


def test_a_fraction_keeps_the_same_tiles_whoever_trains_and_a_smaller_one_a_part_of_them(tile_set):
    def labelled(seed, share):
        return set(BatchSource(tile_set, Composition(), seed=seed, labels_fraction=share).labelled.tiles.place.tolist())

    assert labelled(0, 0.5) == labelled(1, 0.5)
    assert labelled(0, 0.25) < labelled(0, 0.5)


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


@pytest.mark.parametrize("asked", [24, 1])  # tiles of 64 pixels are 8 of the context
def test_a_context_larger_than_a_window_is_read_in_part(tile_set, asked):
    side = max(asked, 2 * 8)
    batch = BatchSource(tile_set, Composition(contexts=4, tiles=2, with_context=True, context_side=asked), seed=0)[0]
    assert batch.context.image.shape == (4, 3, side, side)
    with rasterio.open(tile_set.path(tile_set.card.scenes[0].context)) as raster:
        everything = raster.read().astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(everything, (side, side), axis=(1, 2))
    for image, valid in zip(batch.context.image, batch.context.valid, strict=True):
        found = ((windows == image[:, None, None].numpy()) | ~valid.numpy()).all((0, 3, 4))
        assert found.any()


def test_the_box_of_a_short_tile_is_that_of_the_filled_one(tile_set):
    """Its image is filled to the card's side; a box of the scene's part alone would stretch the context over the filling."""
    short = Tile(0, Window(480, 464, 32, 48), "train", True)
    batch = collate(TileReader(tile_set), [short], [Window(40, 30, 24, 34)], Composition(1, 1, 0, True))
    assert (34 * batch.context.box[0]).tolist() == pytest.approx([20, 28, 28, 36])


def test_thumbnails_show_the_scene_around_each_context(tile_set, monkeypatch):
    """The thumbnail under a context's box is the area mean of that context, wherever both begin on the same pixel."""
    monkeypatch.setattr("rsdistill.data.pools.CONTEXT_SIDE", 24)
    reader, places = TileReader(tile_set), [Window(0, 0, 24, 24), Window(8, 32, 24, 24), Window(40, 40, 24, 24)]
    inside = [next(t for t in tile_set.tiles if Window(*(8 * part for part in view)).intersection(t.window) == t.window) for view in places]
    batch = collate(reader, inside, places, Composition(3, 1, 0, True, thumbnail_from=511))
    wider = batch.context.wider
    assert wider.image.shape == (3, 3, 8, 8), "512 pixels at 1/64"
    assert wider.index.tolist() == [0, 1, 2]
    for m in range(3):
        top, left, bottom, right = (8 * wider.box[m]).round().int().tolist()
        assert (8 * wider.box[m] - torch.tensor([top, left, bottom, right])).abs().max() < 1e-5
        mean, known = area_mean(batch.context.image[m].numpy().astype(np.uint8), batch.context.valid[m].numpy(), 8)
        assert np.array_equal(wider.image[m, :, top:bottom, left:right].numpy(), mean)
        assert np.array_equal(wider.valid[m, top:bottom, left:right].numpy(), known)


@pytest.mark.parametrize(("threshold", "shown"), [(0, False), (512, False), (511, True)])
def test_only_scenes_above_the_threshold_have_a_thumbnail(tile_set, threshold, shown):
    source = BatchSource(tile_set, Composition(2, 1, 0, True, thumbnail_from=threshold), seed=0)
    assert (source[0].context.wider is not None) == shown


@pytest.mark.parametrize("size", [(2, 3), (300, 200), (512, 513), (1563, 1200)])
def test_a_thumbnail_is_seen_around_its_context_and_no_further_than_it_goes(size):
    for row, col in ((0, 0), (8 * size[0] - 16, 8 * size[1] - 16), (4 * size[0], 4 * size[1])):
        view = thumbnail_window(Window(max(0, row), max(0, col), 16, 16), size)
        assert (view.height, view.width) == tuple(min(side, 512) for side in size)
        assert view.intersection(Window(0, 0, *size)) == view
        assert view.row <= max(0, row) // 8 < view.stop[0]
        assert view.col <= max(0, col) // 8 < view.stop[1]


def test_the_thumbnail_of_the_context_raster_is_that_of_the_scene(tile_set):
    """What training reads and what mapping makes of the scene itself are the same pixels."""
    values, valid = TileReader(tile_set).thumbnail(0)
    with open_source(tile_set, 0) as scene:
        made, known = thumbnail((rows.image, rows.valid) for rows in context_rows(scene, tile_set.card.bands, 8, 0))
    assert np.array_equal(values, made)
    assert np.array_equal(valid, known)
