"""A small tile set, made by the real command from a drawn scene, shared by the tests of one process."""

import pytest

from rsdistill.commands.tile import tile
from rsdistill.geo.synthetic import write_land_cover


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    """Return the folder of a tile set of 64-pixel tiles, split in blocks."""
    folder = tmp_path_factory.mktemp("tiled")
    drawn = write_land_cover(folder, size=512, seed=3)
    tile(scenes=[drawn.scene], labels=[drawn.labels], classes=drawn.classes, work=folder / "work", tile=64)
    return folder / "work" / "tiles"
