"""The comparison of methods as numbers, as Markdown and as a picture: accuracy, and the cost of a step."""

from collections.abc import Sequence
from math import nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from rsdistill.geo.files import atomic
from rsdistill.outputs.pages import drawing, write_page

CONFIDENCE = 0.95
COLORS, OTHERS, SOFT = {"ce": "#666666", "kd": "#0072b2"}, "#d55e00", "#5b6670"
"""Of the two baselines, of all other methods, and of what stands aside: apart in brightness too."""
AVERAGED = ("miou", "pixel_accuracy", "boundary_iou", "ms_per_step", "peak_mb", "seconds", "steps")


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a method, best first: means and deviations over seeds, and the paired difference to ``ce`` with its 95 % interval."""
    seeds = {run["seed"]: run["miou"] for run in runs if run["method"] == "ce"}
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        row: dict[str, Any] = {"method": method, "runs": len(own)}
        for name in AVERAGED:
            values = np.array([nan if run[name] is None else run[name] for run in own], float)
            row |= {name: float(values.mean()), f"{name}_sd": float(values.std(ddof=1)) if len(own) > 1 else 0.0}
        row["to_ce"], row["to_ce_interval"] = paired([run["miou"] - seeds[run["seed"]] for run in own if run["seed"] in seeds])
        rows.append(row)
    return sorted(rows, key=lambda row: -row["miou"])


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and the half-width of its 95 % interval by Student's t (NaN for one pair)."""
    from scipy.stats import t

    values = np.asarray(differences, float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else nan, nan
    return float(values.mean()), float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / sqrt(len(values)))


def markdown(comparison: dict[str, Any]) -> str:
    """Return the comparison as Markdown tables."""
    lines = []
    for budget, rows in comparison["budgets"].items():
        lines += [
            f"### Equal {budget}",
            "",
            "| method | mIoU % | PA % | boundary IoU % | to `ce`, points | steps | ms/step | s | peak MB |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in rows:
            interval = "" if np.isnan(row["to_ce_interval"]) else f" ± {100 * row['to_ce_interval']:.1f}"
            cells = [row["method"], *(f"{100 * row[name]:.1f} ± {100 * row[f'{name}_sd']:.1f}" for name in AVERAGED[:3])]
            cells += [
                "–" if row["method"] == "ce" else f"{100 * row['to_ce']:+.1f}{interval}",
                *(f"{row[name]:.0f}" for name in ("steps", "ms_per_step", "seconds", "peak_mb")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def draw_comparison(comparison: dict[str, Any], path: Path) -> None:
    """Draw the comparison as a PNG.

    Raises:
        DiskError: the picture cannot be written.
    """
    with atomic(path) as part:
        comparison_figure(comparison).savefig(part, dpi=160)


def write_comparison(comparison: dict[str, Any], path: Path, commands: Sequence[tuple[str, str]]) -> None:
    """Write the comparison as one HTML file; runs whose own report lies in ``runs/`` beside it are linked.

    Raises:
        DiskError: it cannot be written.
    """
    runs = comparison["runs"]
    classes = list(dict.fromkeys(name for run in runs for name in run["per_class"]))
    per_class = {
        budget: {row["method"]: _class_means(_of(runs, budget, row["method"]), classes) for row in rows}
        for budget, rows in comparison["budgets"].items()
    }
    linked = [{**run, "report": run.get("report") if (path.parent / run.get("report", "")).is_file() else None} for run in runs]
    write_page(
        path,
        "comparison.html.j2",
        title="Methods compared: " + ", ".join(dict.fromkeys(run["method"] for run in runs)),
        plot=drawing(comparison_figure(comparison)),
        budgets=comparison["budgets"],
        classes=classes,
        per_class=per_class,
        runs=linked,
        commands=commands,
    )


def _of(runs: Sequence[dict[str, Any]], budget: str, method: str) -> list[dict[str, Any]]:
    return [run for run in runs if (run["budget"], run["method"]) == (budget, method)]


def _class_means(runs: Sequence[dict[str, Any]], classes: Sequence[str]) -> list[float | None]:
    """The mean IoU of each class over the runs that have a figure; None without any."""
    found = [[run["per_class"][name] for run in runs if run["per_class"].get(name) is not None] for name in classes]
    return [sum(known) / len(known) if known else None for known in found]


def comparison_figure(comparison: dict[str, Any]) -> Any:
    """Return mIoU by method, best first, as a matplotlib figure: one panel a budget.

    A dot is the mean over seeds, its bar the standard deviation, rings are single runs; the line is ``ce``. Beside them stands what a
    step costs.
    """
    from matplotlib.figure import Figure

    budgets = comparison["budgets"]
    height = 1.1 + 0.27 * max(len(rows) for rows in budgets.values())
    figure = Figure(figsize=(5.2 * len(budgets), height), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False, sharex=True)[0]
    for panel, (budget, rows) in zip(panels, budgets.items(), strict=True):
        _draw_methods(panel, rows, [run for run in comparison.get("runs", ()) if run["budget"] == budget])
        panel.set_title(f"equal {budget}", loc="left", fontsize=10)
        panel.set_title("ms a step", loc="right", fontsize=8, color=SOFT)
        panel.set_xlabel("whole-scene mIoU, %", fontsize=9)
    return figure


def _draw_methods(panel: Any, rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> None:
    places = {row["method"]: place for place, row in enumerate(rows)}
    for row in rows:
        color, place = COLORS.get(row["method"], OTHERS), places[row["method"]]
        seeds = [100 * run["miou"] for run in runs if run["method"] == row["method"]]
        panel.scatter(seeds, [place] * len(seeds), s=14, facecolors="none", edgecolors=color, linewidths=0.8)
        panel.errorbar(100 * row["miou"], place, xerr=100 * row["miou_sd"], fmt="o", color=color, capsize=3, markersize=5)
        panel.annotate(f"{row['ms_per_step']:.0f}", (1.0, place), xycoords=panel.get_yaxis_transform(), ha="right", va="center",
                       fontsize=8, color=SOFT)  # fmt: skip
        if row["method"] == "ce":
            panel.axvline(100 * row["miou"], color=color, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    panel.set_yticks(list(places.values()), list(places), fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right", "left"]].set_visible(False)
