"""The picture of a training run, drawn from its log: what the loss is made of on the left, how well it does on the right."""

import csv
from collections.abc import Iterable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.classes import COLORS
from rsdistill.geo.files import atomic

Column = NDArray[np.float64]

WEIGHTED = ".weighted"
SCORES = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
DASHES = ("-", "--", "-.", ":")
LOG_RANGE = 50.0
"""A loss that spans more than this factor is drawn on a logarithmic axis."""
INK, RULE = "#222222", "#d0d0d0"


def draw_curves(log: Path, path: Path, title: str) -> None:
    """Draw the log of a training run as a PNG.

    Args:
        log: CSV with a column ``step``; ``loss`` and ``NAME.weighted`` (the loss and its addends), ``miou`` and ``pixel_accuracy``
            (validation, where a row has one) are drawn, other columns are not.
        path: the PNG; its parent folder is made.
        title: stands above the picture.

    Raises:
        DiskError: the picture cannot be written.
    """
    figure = curves_figure(read_log(log), title)
    with atomic(path) as part:
        figure.savefig(part, dpi=160)


def read_log(log: Path) -> dict[str, Column]:
    """Return the columns of a log; NaN where a row has no figure, so that all are of one length."""
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = rows[0] if rows else ()
    return {name: np.array([float(row[name] or nan) for row in rows]) for name in names}


def curves_figure(columns: dict[str, Column], title: str) -> Any:
    """Return the matplotlib figure of the columns of a log."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    loss, scores = figure.subplots(1, 2)
    _draw_loss(loss, columns)
    _draw_scores(scores, columns)
    for panel in (loss, scores):
        panel.set_xlabel("step")
        panel.margins(x=0.02)
        panel.grid(color=RULE, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(RULE)
        panel.tick_params(color=RULE)
        if panel.lines:
            panel.legend(frameon=False, fontsize=8)
    return figure


def _draw_loss(panel: Any, columns: dict[str, Column]) -> None:
    """Draw the loss and, where there are several, the weighted terms that it is the sum of."""
    panel.set_title("training loss and its weighted terms", loc="left", fontsize=9)
    steps, loss = columns.get("step", np.empty(0)), columns.get("loss", np.empty(0))
    terms = {name.removesuffix(WEIGHTED): values for name, values in columns.items() if name.endswith(WEIGHTED)}
    terms = {name: values for name, values in terms.items() if np.nan_to_num(values).any()}
    if len(terms) > 1:
        for position, (name, values) in enumerate(terms.items()):
            style = {"color": COLORS[position % len(COLORS)], "linestyle": DASHES[position % len(DASHES)], "linewidth": 1.3}
            panel.plot(*_known(steps, values), label=name, **style)
    if loss.size:
        panel.plot(*_known(steps, loss), label="loss", color=INK, linewidth=1.8)
    if _spans_decades([loss, *terms.values()]):
        panel.set_yscale("log")


def _draw_scores(panel: Any, columns: dict[str, Column]) -> None:
    """Draw the validation scores, and ring the step whose weights are kept: the best mIoU, the later of equals."""
    panel.set_title("validation", loc="left", fontsize=9)
    panel.set_ylabel("%")
    panel.set_ylim(0, 100)
    for position, (name, label) in enumerate(SCORES.items()):
        steps, values = _known(columns.get("step", np.empty(0)), 100 * columns.get(name, np.empty(0)))
        if not values.size:
            continue
        best = len(values) - 1 - int(np.argmax(values[::-1]))
        style = {"color": COLORS[position], "linestyle": DASHES[position], "marker": "os"[position], "markersize": 4}
        panel.plot(steps, values, label=f"{label}, best {values[best]:.1f} %", **style)
        if name == "miou":
            panel.plot(steps[best], values[best], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK)


def _known(steps: Column, values: Column) -> tuple[Column, Column]:
    """The points that have a figure: terms and scores do not stand in every row."""
    there = np.isfinite(values)
    return steps[there], values[there]


def _spans_decades(columns: Iterable[Column]) -> bool:
    values = np.concatenate([*columns, np.empty(0)])
    values = values[np.isfinite(values) & (values != 0)]
    return bool(values.size and values.min() > 0 and values.max() / values.min() > LOG_RANGE)
