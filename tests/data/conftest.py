"""A small tile set, made by the real command, shared by the tests of one process."""

import pytest

from rsdistill.commands.tile import tile
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.tile_index import load_tile_set


@pytest.fixture(scope="session")
def tile_set(tmp_path_factory):
    """Return a tile set of 64-pixel tiles of a drawn scene with a nodata corner."""
    folder = tmp_path_factory.mktemp("tiled")
    drawn = write_land_cover(folder, size=512, seed=3)
    tile(scenes=[drawn.scene], labels=[drawn.labels], classes=drawn.classes, work=folder / "work", tile=64)
    return load_tile_set(folder / "work" / "tiles")
