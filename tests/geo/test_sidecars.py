"""What stands beside a raster: taken where it is what it claims, ignored and named otherwise."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from rsdistill.errors import SceneError
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Window

PIXELS = np.full((1, 4, 5), 9, np.uint8)


@pytest.fixture
def nowhere(write_raster):
    """A raster that says nothing of its place."""
    return write_raster("a.tif", PIXELS, crs=None, transform=None)


def test_a_world_file_gives_the_place_of_pixel_centres(nowhere):
    nowhere.with_suffix(".tfw").write_text("2\n0\n0\n-2\n101\n199\n")
    with open_scene(nowhere) as scene:
        assert scene.grid.transform == Affine(2, 0, 100, 0, -2, 200)
        assert scene.ignored_sidecars == ()


@pytest.mark.parametrize("text", ["", "1 2 3", "a b c d e f", "nan 0 0 1 0 0", "1\n" * 5000])
def test_a_broken_world_file_is_ignored_and_named(nowhere, text):
    nowhere.with_suffix(".tfw").write_text(text)
    with open_scene(nowhere) as scene:
        assert scene.grid.transform.is_identity
        assert "a.tfw is ignored" in scene.ignored_sidecars[0]


def test_an_aux_xml_tells_place_and_nodata(nowhere):
    wkt = rasterio.crs.CRS.from_epsg(32633).to_wkt().replace('"', "&quot;")
    nowhere.with_name("a.tif.aux.xml").write_text(
        f"<PAMDataset><SRS>{wkt}</SRS><GeoTransform>100, 2, 0, 200, 0, -2</GeoTransform>"
        '<PAMRasterBand band="1"><NoDataValue>9</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    with open_scene(nowhere) as scene:
        assert scene.grid.crs.to_epsg() == 32633
        assert scene.grid.transform == Affine(2, 0, 100, 0, -2, 200)
        assert not scene.read(Window(0, 0, 4, 5), (1,))[1].any()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">http://a.b/c</MDI></Metadata></PAMDataset>', "overview file"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><PAMDataset/>', "entities"),
        ("<PAMDataset><GeoTransform>1, 2</GeoTransform></PAMDataset>", "six numbers"),
        ("<PAMDataset><SRS>nonsense</SRS></PAMDataset>", "ignored"),
        ("not xml", "not XML"),
    ],
)
def test_a_hostile_aux_xml_is_ignored_and_named(nowhere, text, reason):
    nowhere.with_name("a.tif.aux.xml").write_text(text)
    with open_scene(nowhere) as scene:
        assert reason in scene.ignored_sidecars[0]
        assert scene.read(Window(0, 0, 4, 5), (1,))[1].all()


def test_a_mask_beside_is_heard_if_it_is_a_geotiff_of_the_same_size(nowhere, write_raster):
    mask = np.full((1, 4, 5), 255, np.uint8)
    mask[0, 1, 1] = 0
    beside = write_raster("mask.tif", mask, crs=None, transform=None)
    target = nowhere.with_name("a.tif.msk")
    target.write_bytes(beside.read_bytes())
    with open_scene(nowhere) as scene:
        assert np.argwhere(~scene.read(Window(0, 0, 4, 5), (1,))[1]).tolist() == [[1, 1]]
    target.write_text('<VRTDataset rasterXSize="5" rasterYSize="4"/>')
    with open_scene(nowhere) as scene:
        assert scene.read(Window(0, 0, 4, 5), (1,))[1].all()
        assert "a.tif.msk is ignored" in scene.ignored_sidecars[0]
    target.write_bytes(write_raster("small.tif", mask[:, :2]).read_bytes())
    with pytest.raises(SceneError, match=r"is \(2, 5\)"):
        open_scene(nowhere)


def test_an_overview_that_is_a_vrt_is_never_opened(nowhere):
    nowhere.with_name("a.tif.ovr").write_text("<VRTDataset><SourceFilename>/vsicurl/http://localhost:1/x</SourceFilename></VRTDataset>")
    with open_scene(nowhere) as scene:
        assert np.array_equal(scene.read(Window(0, 0, 4, 5), (1,))[0], PIXELS)
