"""Colours and names as GIS programs read them: one QGIS style for masks and polygons, the raster's names, the style row of a GeoPackage."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from rsdistill.errors import DiskError
from rsdistill.geo.classes import ClassTable

QGIS_VERSION = "3.22.0"
"""Oldest QGIS that the styles are written for."""

_SYMBOLOGY = {"version": QGIS_VERSION, "styleCategories": "Symbology"}
_ROOT = "<qgis " + " ".join(f'{name}="{value}"' for name, value in _SYMBOLOGY.items()) + ">"

CLASS_FIELD = "class_id"
"""Attribute that the polygons' style looks at."""


LABEL_DOMAIN = "RSDISTILL_LABELS"
"""Domain of a mask's metadata that tells what label values mean."""


class Category(NamedTuple):
    """One entry of a legend."""

    value: int | str
    label: str
    color: str
    """``#rrggbb``"""


def categories(table: ClassTable) -> list[Category]:
    """Return the legend of a class table."""
    return [Category(one.id, one.name, one.color) for one in table.classes]


def qml(raster: Sequence[Category] = (), vector: Sequence[Category] = (), *, field: str = CLASS_FIELD) -> str:
    """Return a QGIS style document.

    It may hold a paletted renderer for a raster and a categorised renderer for polygons at once: QGIS looks up the one that fits the
    layer, so that ``mask.qml`` serves both ``mask.tif`` and ``mask.fgb``.
    """
    root = ET.Element("qgis", _SYMBOLOGY)
    if raster:
        _paletted(ET.SubElement(root, "pipe"), raster)
    if vector:
        _categorized(root, vector, field)
    ET.indent(root)
    head = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return head + ET.tostring(root, encoding="unicode") + "\n"


def class_style(table: ClassTable) -> str:
    """Return the QGIS style of a class table's masks and polygons."""
    return qml(categories(table), categories(table))


def own_style(path: Path) -> str:
    """Return the text of the style in a ``.qml`` file that :func:`qml` made; empty for none, and for one that a person saved in QGIS."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if _ROOT in text else ""


def _paletted(pipe: ET.Element, entries: Sequence[Category]) -> None:
    renderer = ET.SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor="")
    ET.SubElement(renderer, "rasterTransparency")
    palette = ET.SubElement(renderer, "colorPalette")
    for entry in entries:
        ET.SubElement(palette, "paletteEntry", value=str(entry.value), color=entry.color, alpha="255", label=entry.label)


def _categorized(root: ET.Element, entries: Sequence[Category], field: str) -> None:
    renderer = ET.SubElement(
        root, "renderer-v2", type="categorizedSymbol", attr=field, enableorderby="0", forceraster="0", symbollevels="0"
    )
    listed, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for number, entry in enumerate(entries):
        kind = "long" if isinstance(entry.value, int) else "string"
        ET.SubElement(listed, "category", value=str(entry.value), type=kind, label=entry.label, symbol=str(number), render="true")
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=str(number), alpha="1", clip_to_extent="1", force_rhr="0")
        layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "pass": "0", "locked": "0", "enabled": "1"})
        red, green, blue = bytes.fromhex(entry.color[1:])
        fill = {
            "color": f"{red},{green},{blue},179",
            "outline_color": f"{red},{green},{blue},255",
            "outline_width": "0.2",
            "outline_width_unit": "MM",
            "style": "solid",
            "outline_style": "solid",
        }
        options = ET.SubElement(layer, "Option", type="Map")
        for name, value in fill.items():
            ET.SubElement(options, "Option", type="QString", name=name, value=value)


def aux_xml(table: ClassTable) -> str:
    """Return the ``.aux.xml`` of a mask: category names and the attribute table (value, name, red, green, blue) for GDAL and QGIS.

    Its metadata, in a domain of ours, say which label values mean a class other than by its id, and which mean nothing.
    """
    root = ET.Element("PAMDataset")
    labels = {f"sources_{one.id}": one.sources for one in table.classes if one.sources != (one.id,)} | {"ignore": table.ignore}
    metadata = ET.SubElement(root, "Metadata", domain=LABEL_DOMAIN)
    for key, values in labels.items():
        ET.SubElement(metadata, "MDI", key=key).text = " ".join(map(str, values))
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    names = {one.id: one.name for one in table.classes}
    listed = ET.SubElement(band, "CategoryNames")
    for value in range(max(names) + 1):
        ET.SubElement(listed, "Category").text = names.get(value, "")
    attributes = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    # (column, GDALRATFieldType, GDALRATFieldUsage): integer or string; min-max, name, red, green, blue.
    columns = (("value", 0, 5), ("class_name", 2, 2), ("red", 0, 6), ("green", 0, 7), ("blue", 0, 8))
    for index, (name, kind, usage) in enumerate(columns):
        column = ET.SubElement(attributes, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", kind), ("Usage", usage)):
            ET.SubElement(column, tag).text = str(text)
    for number, one in enumerate(table.classes):
        row = ET.SubElement(attributes, "Row", index=str(number))
        for cell in (one.id, one.name, *one.rgb):
            ET.SubElement(row, "F").text = str(cell)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def add_layer_style(path: Path, layer: str, style: str) -> None:
    """Store ``style`` (QML) in the GeoPackage ``path`` as the default style of ``layer``, replacing one that is there.

    Raises:
        DiskError: SQLite cannot write it.
    """
    try:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(_LAYER_STYLES)
            database.execute(_LISTED)
            database.execute("DELETE FROM layer_styles WHERE f_table_name = ?", (layer,))
            database.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML, styleSLD,"
                " useAsDefault, description, owner) SELECT '', '', table_name, column_name, table_name, ?, '', 1,"
                " 'Classes by name and colour', '' FROM gpkg_geometry_columns WHERE table_name = ?",
                (style, layer),
            )
    except sqlite3.Error as error:
        raise DiskError(f"cannot write {path}: {error}", hint="check the disk's space and health") from error


_LAYER_STYLES = """
CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256),
    f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT,
    owner TEXT(30), ui TEXT(30), update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)"""

_LISTED = """
INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier, description, last_change)
VALUES ('layer_styles', 'attributes', 'layer_styles', 'Styles for QGIS', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))"""
