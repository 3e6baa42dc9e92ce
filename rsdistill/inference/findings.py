"""What an evaluation leaves: its figures as JSON, and the report that shows them."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsdistill.geo.classes import ClassTable
from rsdistill.geo.files import atomic
from rsdistill.geo.scenes import open_scene
from rsdistill.inference.evaluation import Measured
from rsdistill.outputs.pictures import small_scene
from rsdistill.outputs.report import MOST_PICTURES, Report, ScenePicture, scene_picture, write_report


@dataclass(frozen=True)
class Findings:
    """What was measured, and with what."""

    figures: dict[str, Any]
    """As ``metrics.json`` holds them."""
    table: ClassTable
    measured: Sequence[Measured]
    model: Path | None = None
    """Model file that was measured; None for masks."""
    beside: tuple[str, Sequence[Measured]] | None = None
    """Name of a second model, and what it made of the same scenes."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know."""


def write_findings(metrics: Path, page: Path, findings: Findings, runs: Sequence[Path], *, photos: bool, nodata: Sequence[float]) -> None:
    """Write ``metrics`` (JSON) and ``page`` (HTML).

    Args:
        metrics: the figures.
        page: the report.
        findings: what was measured.
        runs: run files that led here; those that are there are shown.
        photos: whether scenes are shown beside their maps.
        nodata: of scenes that declare none.

    Raises:
        DiskError: a file cannot be written.
    """
    shown, notes = findings.measured[:MOST_PICTURES], findings.notes
    if len(shown) < len(findings.measured):
        notes = (*notes, f"{len(shown)} of {len(findings.measured)} scenes are shown; all are counted")
    log = findings.model.with_name(f"{findings.model.stem}.log.csv") if findings.model is not None else None
    names = [one.subject.name for one in findings.measured]
    report = Report(
        title=f"{findings.model.stem if findings.model is not None else 'Mask'} on {listed(names)}",
        figures=findings.figures,
        table=findings.table,
        pictures=tuple(_picture(findings, number, photos, nodata) for number in range(len(shown))),
        log=log if log is not None and log.exists() else None,
        commands=commands(runs),
        notes=notes,
    )
    write_report(page, report)
    with atomic(metrics) as part:
        part.write_text(json.dumps(findings.figures, indent=1) + "\n", encoding="utf-8")


def commands(runs: Sequence[Path]) -> tuple[tuple[str, str], ...]:
    """Return (command line, options) of each run file that is there."""
    found = [(run, run.read_text(encoding="utf-8")) for run in dict.fromkeys(runs) if run.exists()]
    names = [str(tomllib.loads(text).get("command", "")).replace("_", "-") for _, text in found]
    return tuple((f"rsdistill {name} --config {run}", text) for name, (run, text) in zip(names, found, strict=True))


def listed(names: Sequence[object]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _picture(findings: Findings, number: int, photos: bool, nodata: Sequence[float]) -> ScenePicture:
    one, photo, beside = findings.measured[number], None, None
    if one.subject.scene is not None and photos:
        with open_scene(one.subject.scene, nodata=nodata or None, allow_vrt=True, allow_remote=True) as scene:
            photo = small_scene(scene, max(one.label.index.shape))[0]
    if findings.beside is not None:
        beside = findings.beside[0], findings.beside[1][number].prediction.index
    maps = one.label.index, one.prediction.index, photo
    return scene_picture(one.subject.name, findings.table, *maps, beside=beside, counted=one.counted.index)
