"""Draws docs/assets/qgis.png and docs/assets/report.png: what QGIS and a browser show of what ``make demo`` left.

/usr/bin/python3 docs/draw_clients.py [demo]

Needs QGIS and its Python (make qgis installs them) and chromium; runs in the system's Python, because QGIS brings a GDAL of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ASSETS = Path(__file__).resolve().parent / "assets"
MILLIMETRES = (250, 100)
"""Width and height of the page that QGIS lays out."""


def main(demo: Path) -> None:
    """Draw both pictures, whichever client is here."""
    ASSETS.mkdir(exist_ok=True)
    if shutil.which("chromium"):
        draw_report(demo.resolve() / "report.html", ASSETS / "report.png")
    draw_qgis(demo.resolve(), ASSETS / "qgis.png")


def draw_report(page: Path, picture: Path) -> None:
    """Photograph the report in a headless browser."""
    with TemporaryDirectory() as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        window = ["--window-size=1200,1890", "--virtual-time-budget=4000", f"--screenshot={picture}"]
        subprocess.run(["chromium", *options, *window, page.as_uri()], check=True, capture_output=True, timeout=180)


def draw_qgis(demo: Path, picture: Path) -> None:
    """Lay out mask and polygons, each with the legend that QGIS makes of it, as QGIS opens them; then leave at once."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from qgis.core import (
        QgsApplication,
        QgsLayoutExporter,
        QgsLayoutSize,
        QgsPrintLayout,
        QgsProject,
        QgsRasterLayer,
        QgsUnitTypes,
        QgsVectorLayer,
    )

    application = QgsApplication([], False)
    application.initQgis()
    layers = [QgsRasterLayer(str(demo / "mask.tif"), "mask.tif"), QgsVectorLayer(f"{demo / 'mask.gpkg'}", "mask.gpkg", "ogr")]
    project = QgsProject.instance()
    project.addMapLayers(layers, False)
    layout = QgsPrintLayout(project)
    layout.initializeDefaults()
    layout.pageCollection().page(0).setPageSize(QgsLayoutSize(*MILLIMETRES, QgsUnitTypes.LayoutMillimeters))
    kept = [_add_panel(layout, layer, MILLIMETRES[0] / 2 * number) for number, layer in enumerate(layers)]
    settings = QgsLayoutExporter.ImageExportSettings()
    settings.dpi = 150
    code = QgsLayoutExporter(layout).exportToImage(str(picture), settings)
    del kept
    sys.stdout.flush()
    os._exit(int(code != QgsLayoutExporter.Success))  # its destructors crash in 3.22


def _add_panel(layout, layer, left):
    """Add a layer's map, its name, and the legend of its renderer; return what has to live as long as the layout."""
    from qgis.core import QgsLayerTree, QgsLayoutItemLabel, QgsLayoutItemLegend, QgsLayoutItemMap, QgsLegendRenderer, QgsLegendStyle
    from qgis.PyQt.QtCore import QRectF

    shown = QgsLayoutItemMap(layout)
    shown.setLayers([layer])
    shown.attemptSetSceneRect(QRectF(left + 4, 12, 84, 84))
    shown.setCrs(layer.crs())
    shown.zoomToExtent(layer.extent())
    shown.setFrameEnabled(True)
    layout.addLayoutItem(shown)
    title = QgsLayoutItemLabel(layout)
    title.setText(layer.name())
    title.attemptSetSceneRect(QRectF(left + 4, 4, 84, 8))
    layout.addLayoutItem(title)
    tree = QgsLayerTree()
    QgsLegendRenderer.setNodeLegendStyle(tree.addLayer(layer), QgsLegendStyle.Hidden)
    legend = QgsLayoutItemLegend(layout)
    legend.setAutoUpdateModel(False)
    legend.model().setRootGroup(tree)
    legend.attemptSetSceneRect(QRectF(left + 89, 10, 30, 86))
    layout.addLayoutItem(legend)
    return tree


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo"))
