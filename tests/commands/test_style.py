"""``style``: names and colours written anew."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate

from rsdistill.commands.style import style
from rsdistill.errors import ClassTableError, MaskError
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import LabelRasterWriter
from rsdistill.outputs.masks import mask_table
from rsdistill.outputs.polygons import write_polygons

TABLE = ClassTable((LandClass(1, "building", "#e41a1c"), LandClass(4, "water", "#377eb8")))
OTHER = ClassTable((LandClass(1, "house", "#010203"), LandClass(4, "lake", "#040506"), LandClass(9, "snow", "#ffffff")))
INDEX = np.array([[0, 0, 1, 255], [0, 1, 1, 1]], np.uint8).repeat(40, 0).repeat(40, 1)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    grid = Grid(*INDEX.shape, CRS.from_epsg(32640), Affine(1, 0, 500_000, 0, -1, 2_800_000))
    with LabelRasterWriter(tmp_path / "mask.tif", grid, TABLE) as writer:
        writer.write(0, INDEX)
    return tmp_path / "mask.tif"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    (tmp_path / "other.toml").write_text(OTHER.to_toml(), encoding="utf-8")
    return tmp_path / "other.toml"


def layer_style(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        [(found,)] = database.execute("SELECT styleQML FROM layer_styles").fetchall()
    return str(found)


def test_a_mask_takes_the_names_and_colours_of_a_class_table(mask: Path, classes: Path) -> None:
    assert style(mask, classes=classes).paths == (mask,)
    assert mask_table(mask) == OTHER
    assert cog_validate(mask, strict=True)[0]
    with rasterio.open(mask) as file:
        assert file.colormap(1)[4] == (4, 5, 6, 255)
        assert (file.read(1) == TABLE.to_ids(INDEX)).all()
    assert "lake" in mask.with_suffix(".qml").read_text(encoding="utf-8")


def test_lost_sidecars_come_back_from_the_names_that_are_left(mask: Path) -> None:
    before = mask.with_suffix(".qml").read_bytes()
    mask.with_suffix(".qml").unlink()
    style(mask)
    assert mask.with_suffix(".qml").read_bytes() == before


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson", ".parquet"])
def test_polygons_take_the_style_too(mask: Path, classes: Path, suffix: str) -> None:
    path = mask.with_name(f"land{suffix}")
    write_polygons(mask, path, TABLE)
    before = path.read_bytes()
    style([path], classes=classes)
    assert "lake" in (layer_style(path) if suffix == ".gpkg" else path.with_suffix(".qml").read_text(encoding="utf-8"))
    assert suffix == ".gpkg" or path.read_bytes() == before


def test_a_layer_is_asked_for_by_name(mask: Path, classes: Path) -> None:
    path = mask.with_name("land.gpkg")
    write_polygons(mask, path, TABLE, layer="cover")
    style(path, classes=classes, layer="cover")
    with pytest.raises(MaskError, match="layer 'cove' but: cover"):
        style(path, classes=classes, layer="cove")


def test_a_plain_class_raster_without_nodata_can_be_styled(tmp_path: Path, classes: Path) -> None:
    how = {"height": 30, "width": 40, "count": 1, "dtype": "uint8", "compress": "packbits"}
    with rasterio.open(tmp_path / "plain.tif", "w", driver="GTiff", **how) as file:
        file.write(np.full((1, 30, 40), 4, np.uint8))
    style(tmp_path / "plain.tif", classes=classes)
    with rasterio.open(tmp_path / "plain.tif") as file:
        assert (file.nodata, file.colormap(1)[4]) == (None, (4, 5, 6, 255))
        assert (file.read(1) == 4).all()
    assert mask_table(tmp_path / "plain.tif") == OTHER


def test_what_cannot_be_styled_is_said_and_left_as_it_is(mask: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    short, wide = tmp_path / "short.toml", tmp_path / "wide.toml"
    short.write_text(ClassTable(TABLE.classes[:1]).to_toml(), encoding="utf-8")
    wide.write_text(ClassTable((*TABLE.classes, LandClass(300, "x", "#000000"))).to_toml(), encoding="utf-8")
    with pytest.raises(MaskError, match="holds 4, which is no class"):
        style(mask, classes=short)
    with pytest.raises(MaskError, match=r"mask.tif is uint8, a mask of these classes is uint16"):
        style(mask, classes=wide)
    with pytest.raises(ClassTableError):
        style(mask, classes=tmp_path / "none.toml")
    with pytest.raises(MaskError, match="there is no file"):
        style(tmp_path / "none.tif")
    with pytest.raises(MaskError, match="neither a mask nor"):
        style(short)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path not in (short, wide)} == before


def test_one_bad_file_of_many_does_not_stop_the_others(mask: Path, classes: Path, tmp_path: Path) -> None:
    result = style([tmp_path / "none.tif", mask], classes=classes)
    assert result.paths == (mask,)
    assert len(result.failures) == 1
    assert mask_table(mask) == OTHER
