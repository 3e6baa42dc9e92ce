"""The report of an evaluation: one HTML file with pictures and figures in it, that opens anywhere and asks nobody for anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsdistill.geo.classes import IGNORE, ClassTable
from rsdistill.outputs.curves import curves_figure, read_log
from rsdistill.outputs.pages import drawing, uri, write_page
from rsdistill.outputs.pictures import Bytes, class_png, photo_jpeg

ERROR_COLORS = ("#dbe4ea", "#d55e00")
"""Right and wrong: apart in brightness, and in hue for colour-blind people too."""
MOST_PICTURES = 8
"""Scenes that are shown; all are counted."""
LARGEST_SIDE, SMALLEST_SIDE = 1400, 500
"""Of a picture in pixels: the more scenes, the smaller."""


@dataclass(frozen=True)
class Layer:
    """One picture of a scene."""

    name: str
    source: str
    """A ``data:`` URI."""


@dataclass(frozen=True)
class ScenePicture:
    """What the report shows of one scene: layers of one size, on top of each other."""

    name: str
    size: tuple[int, int]
    """Height and width in pixels of the picture."""
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Report:
    """What a report tells."""

    title: str
    figures: dict[str, Any]
    """As in ``metrics.json``."""
    table: ClassTable
    pictures: tuple[ScenePicture, ...] = ()
    log: Path | None = None
    """Log of the model's training."""
    commands: tuple[tuple[str, str], ...] = ()
    """Each run that led here: a line, and the TOML that repeats it."""
    notes: tuple[str, ...] = ()


def picture_side(scenes: int) -> int:
    """The longest side of each picture in a report of so many scenes."""
    return max(SMALLEST_SIDE, round(LARGEST_SIDE / max(1, min(scenes, MOST_PICTURES)) ** 0.5))


def scene_picture(
    name: str,
    table: ClassTable,
    label: Bytes,
    prediction: Bytes,
    photo: Bytes | None = None,
    *,
    beside: tuple[str, Bytes] | None = None,
    counted: Bytes | None = None,
) -> ScenePicture:
    """Return the layers of a scene.

    Args:
        name: of the scene.
        table: names and colours.
        label: (h, w) class index, 255 where it is not known.
        prediction: (h, w) likewise.
        photo: (h, w, 3) colours of the scene.
        beside: name of a second model, and its (h, w) class index.
        counted: ``label`` where it counts; all of it by default.
    """
    truth = label if counted is None else counted
    wrong = np.where((truth == IGNORE) | (prediction == IGNORE), IGNORE, truth != prediction).astype(np.uint8)
    layers = [("label", class_png(label, table.colors)), ("prediction", class_png(prediction, table.colors))]
    if beside is not None:
        layers.insert(1, (beside[0], class_png(beside[1], table.colors)))
    layers.append(("errors", class_png(wrong, ERROR_COLORS)))
    found = [Layer(title, uri("image/png", content)) for title, content in layers]
    if photo is not None:
        found.insert(0, Layer("scene", uri("image/jpeg", photo_jpeg(photo))))
    return ScenePicture(name, (label.shape[0], label.shape[1]), tuple(found))


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file.

    Raises:
        DiskError: it cannot be written.
    """
    write_page(
        path,
        "report.html.j2",
        report=report,
        classes=_classes(report),
        confusion=_shares(report.figures["confusion"]),
        curves=drawing(curves_figure(read_log(report.log), report.log.name.removesuffix(".log.csv"))) if report.log else None,
        error_colors=ERROR_COLORS,
        meanings={"classes": _meanings(report.table), "errors": dict(zip(ERROR_COLORS, ("right", "wrong"), strict=True))},
    )


def _meanings(table: ClassTable) -> dict[str, str]:
    """What each colour stands for: two classes where they share it."""
    names: dict[str, str] = {}
    for one in table.classes:
        color = one.color.lower()
        names[color] = f"{names[color]} or {one.name}" if color in names else one.name
    return names


def _classes(report: Report) -> list[dict[str, Any]]:
    """One row a class for the bars: its colour and its figures."""
    per_class = report.figures["per_class"]
    total = max(1, sum(row["pixels"] for row in per_class.values()))
    return [
        {"name": one.name, "color": one.color, "share": per_class[one.name]["pixels"] / total, **per_class[one.name]}
        for one in report.table.classes
    ]


def _shares(confusion: Sequence[Sequence[int]]) -> list[list[float | None]]:
    """Each row of a confusion matrix as shares of its sum; None for a class that no label has."""
    return [[count / sum(row) if sum(row) else None for count in row] for row in confusion]
