"""A model as a folder for a model hub: the file, its card as JSON, and a README that says what it can be used for and what not."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rasterio.warp import transform_bounds

from rsdistill.geo.windows import Grid


class Area(NamedTuple):
    """Where a model was trained."""

    scenes: int
    crs: tuple[str, ...]
    """Codes of the scenes' reference systems."""
    bounds: tuple[float, float, float, float] | None
    """West, south, east, north in degrees of WGS 84; None where no scene has a reference system."""


@dataclass(frozen=True)
class ModelFacts:
    """What the README tells beside the card."""

    name: str
    parameters: int
    operations: int | None
    """Floating-point operations of one tile; None for a network that reads the scene's context."""
    side: int
    """Of that tile, in pixels."""
    area: Area | None = None
    teachers: tuple[str, ...] = ()
    scores: Mapping[str, Any] | None = None
    """As in ``metrics.json``."""


def training_area(grids: Sequence[Grid]) -> Area:
    """Return what the grids of the training scenes cover together."""
    known = [grid for grid in grids if grid.crs is not None]
    boxes = [transform_bounds(grid.crs, "EPSG:4326", *_bounds(grid)) for grid in known]
    codes = tuple(dict.fromkeys(_code(grid) for grid in known))
    if not boxes:
        return Area(len(grids), (), None)
    west, south, east, north = zip(*boxes, strict=True)
    return Area(len(grids), codes, (min(west), min(south), max(east), max(north)))


def write_hub(folder: Path, model: Path, card: Mapping[str, Any], facts: ModelFacts) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``README.md`` into an existing folder."""
    shutil.copyfile(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(card, facts), encoding="utf-8")


def readme(card: Mapping[str, Any], facts: ModelFacts) -> str:
    """Return the Markdown of a model's page, with the front matter that hubs read."""
    parts = [
        "---\nlibrary_name: rsdistill\npipeline_tag: image-segmentation\ntags: [remote-sensing, semantic-segmentation, geospatial]\n---\n",
        f"# {facts.name}\n",
        f"A `{card['arch']}` network for the segmentation of georeferenced scenes, {_origin(card, facts)}.\n",
        "```bash\nrsdistill predict scene.tif --model model.safetensors --out mask.tif\n```\n",
        "## What it reads and answers\n",
        _table(("", ""), _facts(card, facts)),
        "## Classes\n",
        _table(("id", "name", "colour", *(("IoU, %", "F1, %") if facts.scores else ())), _classes(card, facts.scores)),
        _measured(facts.scores),
        "## Limits\n",
        _limits(card, facts),
    ]
    return "\n".join(part for part in parts if part)


def _origin(card: Mapping[str, Any], facts: ModelFacts) -> str:
    method = card.get("method")
    if method in (None, "supervised", "ce"):
        return "trained on labels alone"
    return f"distilled by `{method}` from {' and '.join(facts.teachers) or 'a teacher'}"


def _facts(card: Mapping[str, Any], facts: ModelFacts) -> list[tuple[str, ...]]:
    names = card.get("band_names") or ()
    bands = ", ".join(f"{band} ({name})" if name else f"{band}" for band, name in zip(card["bands"], [*names, *[None] * 99], strict=False))
    size = card.get("pixel_size")
    rows: list[tuple[str, ...]] = [
        ("bands", bands),
        ("values", card.get("dtype") or "not told"),
        ("normalisation", f"(value - mean) / std with mean {_numbers(card['mean'])} and std {_numbers(card['std'])}"),
        ("pixel size", " x ".join(f"{one:g}" for one in (size if isinstance(size, Sequence) else (size,))) if size else "not told"),
        ("tile", f"{facts.side} x {facts.side} pixels, {card.get('margin') or 0} of margin"),
        ("parameters", f"{facts.parameters / 1e6:.2f} M"),
    ]
    if facts.operations:
        a_pixel = facts.operations / facts.side**2
        rows.append(("operations", f"{facts.operations / 1e9:.2f} GFLOP a tile, {a_pixel / 1e3:.1f} kFLOP a pixel"))
    if facts.area is not None:
        noun = "scene" if facts.area.scenes == 1 else "scenes"
        rows.append(("trained on", f"{facts.area.scenes} {noun} in {', '.join(facts.area.crs) or 'no reference system'}"))
    if facts.area is not None and facts.area.bounds is not None:
        west, south, east, north = facts.area.bounds
        rows.append(("extent", f"{west:.4f} to {east:.4f} east, {south:.4f} to {north:.4f} north (WGS 84)"))
    return rows


def _classes(card: Mapping[str, Any], scores: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    rows = []
    for one in card["classes"]:
        found = (scores or {}).get("per_class", {}).get(one["name"])
        cells = (_percent(found["iou"]), _percent(found["f1"])) if found else ("–", "–")
        rows.append((str(one["id"]), one["name"], one.get("color") or "", *(cells if scores else ())))
    return rows


def _measured(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return "It was not measured: `rsdistill evaluate` writes figures that a new export takes up.\n"
    where = f"the {scores['split']} split" if "split" in scores else ", ".join(one["name"] for one in scores["scenes"])
    return f"Mean IoU {_percent(scores['miou'])} %, pixel accuracy {_percent(scores['pixel_accuracy'])} %, whole scenes of {where}.\n"


def _limits(card: Mapping[str, Any], facts: ModelFacts) -> str:
    lines = ["- It knows the light, season and sensor of its training scenes; elsewhere it has to be measured first."]
    lines.append("- Every valid pixel gets one of the classes above, also where none of them is right.")
    if card.get("pixel_size"):
        lines.append("- Scenes of another pixel size should be resampled: `rsdistill predict --pixel-size`.")
    if facts.operations is None:
        lines.append("- It reads the whole scene made small beside each tile: it cannot be exported to ONNX; distill it first.")
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _code(grid: Grid) -> str:
    authority = grid.crs.to_authority() if grid.crs is not None else None
    return ":".join(authority) if authority else "a local reference system"


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    corners = [grid.transform @ (col, row) for col in (0, grid.width) for row in (0, grid.height)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
