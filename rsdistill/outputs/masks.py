"""A mask read back: the class table that its ``.aux.xml`` tells, and its pixels as class indices."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import ClassTableError, MaskError
from rsdistill.geo.classes import IGNORE, ClassTable, LandClass
from rsdistill.geo.scenes import Scene
from rsdistill.geo.sources import parse_xml
from rsdistill.geo.windows import Window
from rsdistill.outputs.styles import LABEL_DOMAIN

ROWS = 512
"""Read at once: whole rows of a mask's blocks."""


def mask_table(mask: Path) -> ClassTable | None:
    """Return the class table in the attribute table beside a mask; None where there is none that makes sense."""
    try:
        document = parse_xml(mask.with_name(mask.name + ".aux.xml"))
        labels = {item.get("key"): item.text for item in document.findall(f"Metadata[@domain='{LABEL_DOMAIN}']/MDI")}
        values = {key: [int(value) for value in (text or "").split()] for key, text in labels.items()}
        classes = [_class(row, values) for row in document.findall(".//GDALRasterAttributeTable/Row")]
        return ClassTable(tuple(classes), tuple(values.get("ignore", ())))
    except (OSError, ValueError, ClassTableError):
        return None


def read_mask(mask: Scene, table: ClassTable) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield (window, (h, W) class index or 255) of whole rows of a mask from the top.

    Raises:
        MaskError: it has more than one band, or a value that is neither a class of ``table`` nor nodata.
    """
    if len(mask.color_bands) != 1 or np.dtype(mask.dtype).kind != "u":
        raise MaskError(f"{mask.path} has {len(mask.color_bands)} bands of {mask.dtype}", hint="a mask is one band of class ids")
    for window, values, valid in mask.strips(mask.color_bands, ROWS):
        ids = np.where(valid, values[0], table.nodata)
        known = ids <= table.nodata
        index = table.from_ids(np.where(known, ids, table.nodata))
        unknown = valid & (index == IGNORE) & (ids != table.nodata)
        if unknown.any():
            value = int(values[0][unknown][0])
            raise MaskError(f"{mask.path} holds {value}, which is no class id", hint="give its class table with --classes")
        yield window, index


def _class(row: ET.Element, labels: Mapping[str | None, Sequence[int]]) -> LandClass:
    """One row of the attribute table (value, name, red, green, blue), with the label values that mean it."""
    value, name, *color = (cell.text or "" for cell in row.findall("F"))
    red, green, blue = map(int, color)
    return LandClass(int(value), name, f"#{red:02x}{green:02x}{blue:02x}", tuple(labels.get(f"sources_{value}", ())))
