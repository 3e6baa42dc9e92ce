"""Styles: what stands in the documents that QGIS and GDAL read."""

import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas
import pytest
import shapely

from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.outputs.styles import Category, add_layer_style, aux_xml, class_style, qml

TABLE = ClassTable((LandClass(7, "a & <b>", "#e41a1c"), LandClass(2, "Wäldchen", "#377eb8")))


def test_one_document_styles_masks_and_polygons() -> None:
    root = ET.fromstring(class_style(TABLE))
    entries = root.findall("pipe/rasterrenderer/colorPalette/paletteEntry")
    found = [(one.get("value"), one.get("label"), one.get("color")) for one in entries]
    assert found == [("7", "a & <b>", "#e41a1c"), ("2", "Wäldchen", "#377eb8")]
    renderer = root.find("renderer-v2")
    assert renderer is not None
    assert renderer.get("attr") == "class_id"
    symbols = {one.get("name"): one for one in renderer.findall("symbols/symbol")}
    listed = {one.get("value"): symbols[one.get("symbol")] for one in renderer.findall("categories/category")}
    color = listed["2"].find("layer/Option/Option[@name='color']")
    assert color is not None
    assert color.get("value") == "55,126,184,179"


@pytest.mark.parametrize(("value", "kind"), [("train", "string"), (1, "long")])
def test_categories_of_words_and_of_numbers(value: str | int, kind: str) -> None:
    root = ET.fromstring(qml(vector=[Category(value, "name", "#000000")], field="split"))
    assert root.find("pipe") is None
    assert [one.get("type") for one in root.iter("category")] == [kind]


def test_names_stand_at_their_values() -> None:
    root = ET.fromstring(aux_xml(TABLE))
    names = [one.text or "" for one in root.findall(".//CategoryNames/Category")]
    assert names == ["", "", "Wäldchen", "", "", "", "", "a & <b>"]
    rows = [[cell.text for cell in row] for row in root.findall(".//Row")]
    assert rows == [["7", "a & <b>", "228", "26", "28"], ["2", "Wäldchen", "55", "126", "184"]]


def test_a_layers_style_is_replaced_and_other_layers_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    frame = geopandas.GeoDataFrame({"class_id": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32640)
    frame.to_file(path, layer="one")
    frame.to_file(path, layer="other")
    for layer, style in (("one", "a"), ("other", "b"), ("one", "c")):
        add_layer_style(path, layer, style)
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT f_table_name, f_geometry_column, styleQML, useAsDefault FROM layer_styles ORDER BY 1").fetchall()
    assert rows == [("one", "geom", "c", 1), ("other", "geom", "b", 1)]
