"""What QGIS itself makes of the files: run with ``-m qgis`` where it is installed."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import FloatRasterWriter, LabelRasterWriter
from rsdistill.outputs.polygons import write_polygons

pytestmark = pytest.mark.qgis

TABLE = ClassTable((LandClass(1, "building", "#e41a1c"), LandClass(4, "water & ice", "#377eb8"), LandClass(9, "Wäldchen <alt>", "#4daf4a")))
WIDE = ClassTable((*TABLE.classes, LandClass(300, "late", "#ffff33")))
GRID = Grid(240, 180, CRS.from_epsg(32640), Affine(0.5, 0, 500_000, 0, -0.5, 2_800_000))
PYTHON = "/usr/bin/python3"
ENVIRONMENT = {"QT_QPA_PLATFORM": "offscreen", "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": "/tmp"}
PROBE = """
import json, os, sys
from qgis.core import QgsApplication, QgsMapRendererParallelJob, QgsMapSettings, QgsRasterLayer, QgsRectangle, QgsVectorLayer
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor

application = QgsApplication([], False)
application.initQgis()
path, picture = sys.argv[1:]
raster = path.endswith(".tif")
layer = QgsRasterLayer(path, "mask") if raster else QgsVectorLayer(path, "mask", "ogr")
box = layer.extent()
renderer = layer.renderer()
found = {"valid": layer.isValid(), "crs": layer.crs().authid(), "kind": renderer.type()}
found["extent"] = [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()]
if raster:
    provider = layer.dataProvider()
    found["nodata"] = provider.sourceNoDataValue(1) if provider.sourceHasNoDataValue(1) else None
    if renderer.type() == "paletted":
        found["classes"] = [[int(one.value), one.label, one.color.name()] for one in renderer.classes()]
else:
    features = list(layer.getFeatures())
    found["invalid"] = sum(not one.geometry().isGeosValid() for one in features)
    found["features"] = len(features)
    found["field"] = renderer.classAttribute()
    found["classes"] = [[int(one.value()), one.label(), one.symbol().color().name()] for one in renderer.categories()]
settings = QgsMapSettings()
settings.setLayers([layer])
settings.setExtent(box)
settings.setOutputSize(QSize(180, 240))
settings.setBackgroundColor(QColor("#ffffff"))
settings.setFlag(QgsMapSettings.Antialiasing, False)
job = QgsMapRendererParallelJob(settings)
job.start()
job.waitForFinished()
job.renderedImage().save(picture)
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def _qgis() -> None:
    try:
        probe = subprocess.run([PYTHON, "-c", "import qgis.core"], env=ENVIRONMENT, capture_output=True, check=False)
    except OSError:
        pytest.skip(f"{PYTHON} is missing")
    if probe.returncode:
        pytest.skip("QGIS is not installed: apt-get install qgis python3-qgis qgis-providers")


@pytest.fixture
def index() -> np.ndarray:
    """Class indices in lumps, and a corner without data."""
    index = np.kron(np.random.default_rng(0).integers(0, 3, (12, 9), dtype=np.uint8), np.ones((20, 20), np.uint8))
    index[:60, :60] = 255
    return index


def look_at(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What QGIS says of a layer, and its picture (240, 180, 3)."""
    from matplotlib.image import imread

    picture = path.with_name("picture.png")
    command = [PYTHON, "-c", PROBE, str(path), str(picture)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1]), np.rint(imread(picture)[:, :, :3] * 255).astype(int)


def write_mask(path: Path, index: np.ndarray, table: ClassTable = TABLE) -> Path:
    with LabelRasterWriter(path, GRID, table) as writer:
        writer.write(0, index)
    return path


@pytest.mark.parametrize("table", [TABLE, WIDE], ids=["uint8", "uint16"])
def test_a_mask_opens_with_its_named_classes_and_transparent_nodata(tmp_path: Path, index: np.ndarray, table: ClassTable) -> None:
    found, picture = look_at(write_mask(tmp_path / "mask.tif", index, table))
    assert found["valid"]
    assert found["crs"] == "EPSG:32640"
    assert found["extent"] == [500_000, 2_799_880, 500_090, 2_800_000]
    assert found["kind"] == "paletted"
    assert found["classes"] == [[one.id, one.name, one.color] for one in table.classes]
    assert found["nodata"] == table.nodata
    colors = np.array([*(one.rgb for one in TABLE.classes), (255, 255, 255)])
    assert (picture == colors[np.where(index == 255, 3, index)]).all()


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson"])
def test_polygons_open_with_their_named_classes(tmp_path: Path, index: np.ndarray, suffix: str) -> None:
    mask = write_mask(tmp_path / "source.tif", index)
    count = write_polygons(mask, tmp_path / f"mask{suffix}", TABLE)
    found, picture = look_at(tmp_path / f"mask{suffix}")
    assert found["valid"]
    assert found["kind"] == "categorizedSymbol"
    assert found["field"] == "class_id"
    assert found["classes"] == [[one.id, one.name, one.color] for one in TABLE.classes]
    assert (found["features"], found["invalid"]) == (count, 0)
    if suffix != ".geojson":
        assert found["crs"] == "EPSG:32640"
        assert found["extent"] == [500_000, 2_799_880, 500_090, 2_800_000]
        assert (picture[5:55, 5:55] == 255).all()
        inside = picture[70, 70]
        nearest = [np.abs(inside - (0.7 * np.array(one.rgb) + 0.3 * 255)).sum() for one in TABLE.classes]
        assert int(np.argmin(nearest)) == index[70, 70]


def test_one_style_serves_mask_and_polygons_of_one_name(tmp_path: Path, index: np.ndarray) -> None:
    mask = write_mask(tmp_path / "mask.tif", index)
    write_polygons(mask, tmp_path / "mask.fgb", TABLE)
    assert look_at(mask)[0]["kind"] == "paletted"
    assert look_at(tmp_path / "mask.fgb")[0]["kind"] == "categorizedSymbol"


def test_confidence_opens_as_grey_figures(tmp_path: Path, index: np.ndarray) -> None:
    with FloatRasterWriter(tmp_path / "confidence.tif", GRID) as writer:
        writer.write(0, np.where(index == 255, np.nan, 0.5).astype(np.float32))
    found, _ = look_at(tmp_path / "confidence.tif")
    assert (found["valid"], found["nodata"]) == (True, 255)
