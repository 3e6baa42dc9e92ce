"""Tiles as columns read as the records that they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsdistill.geo.tiles import CHUNK, SPLITS, Tile, Tiles
from rsdistill.geo.windows import Window

windows = st.builds(Window, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4096), st.integers(1, 4096))
records = st.lists(st.builds(Tile, st.integers(0, 10**4), windows, st.sampled_from(SPLITS), st.booleans()))


@given(records)
def test_columns_are_the_records(given_tiles):
    tiles = Tiles.of(given_tiles)
    assert tiles == given_tiles
    assert tuple(given_tiles) == tiles
    assert [tiles[k] for k in range(len(tiles))] == given_tiles
    assert tiles[1:] == given_tiles[1:]
    assert Tiles.of(tiles) is tiles
    for split in SPLITS:
        part = tiles.of_split(split)
        assert part == [tile for tile in given_tiles if tile.split == split]
        assert all(tiles[place] == tile for place, tile in zip(part.place.tolist(), part, strict=True))
    assert Tiles.joined([tiles.without_labels(), tiles]) == [tile._replace(labelled=False) for tile in given_tiles] + given_tiles


def test_places_are_kept_and_records_are_plain():
    tiles = Tiles.of([Tile(k, Window(k, 0, 8, 8), "train", True) for k in range(5)])
    picked = tiles.pick(np.array([4, 1])).pick(slice(1, None))
    assert picked.place.tolist() == [1]
    assert {type(part) for part in (picked[0].scene, *picked[0].window)} == {int}
    with pytest.raises(IndexError):
        picked[1]
    assert tiles != [*tiles, tiles[0]]


def test_iteration_goes_on_past_a_chunk():
    count = CHUNK + 3
    zeros = np.zeros(count, np.int32)
    tiles = Tiles(np.arange(count, dtype=np.int32), np.ones((count, 4), np.int32), zeros.astype(np.uint8), zeros.astype(bool), zeros)
    assert [tile.scene for tile in tiles] == list(range(count))
