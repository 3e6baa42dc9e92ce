"""``demo``: a drawn scene through tile, train-teacher, distill, predict and evaluate."""

import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from rsdistill.config import Config, Device, run_file
from rsdistill.errors import OutputExistsError
from rsdistill.geo.files import atomic
from rsdistill.reporting import SILENT, Progress, Result, Table

SCENE_FILES = ("scene.tif", "labels.tif", "classes.toml")
MARKER = "demo.run.toml"
"""What makes a folder a demo's own."""
OWN = (*SCENE_FILES, "work", "mask.tif", "mask.tif.aux.xml", "mask.qml", "mask.gpkg", "mask.run.toml", "report.html", MARKER)
"""All that a demo leaves in its folder."""


class DemoConfig(Config):
    """Options of ``demo``."""

    out: Path = Field(Path("demo"), description="Folder of the demo; its own former results are replaced.")
    size: int = Field(1536, ge=512, le=8192, description="Height and width of the drawn scene in pixels.")
    steps: int = Field(160, ge=1, description="Training steps of the teacher, and of the student.")
    seed: int = Field(0, ge=0, description="Seed of the scene and of all training.")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")


def demo(*, progress: Progress = SILENT, **options: Any) -> Result:
    """Draw a land-cover scene and take it through tile, train-teacher, distill, predict and evaluate.

    It needs nothing and takes minutes on two cores. The result is the folder demo/ with scene.tif, mask.tif, mask.gpkg and report.html.
    """
    config = DemoConfig.of(**options)
    from rsdistill.commands.distill import distill
    from rsdistill.commands.evaluate import evaluate
    from rsdistill.commands.predict import predict
    from rsdistill.commands.tile import tile
    from rsdistill.commands.train_teacher import train_teacher
    from rsdistill.geo.synthetic import write_land_cover

    out = config.out
    _clear(config)
    write_land_cover(out, size=config.size, seed=config.seed)
    scene, labels, classes = (out / name for name in SCENE_FILES)
    work: dict[str, Any] = {"work": out / "work", "seed": config.seed, "progress": progress}
    train: dict[str, Any] = {**work, "steps": config.steps, "device": config.device}
    progress.message(f"a scene of {config.size} x {config.size} pixels is drawn: {scene}")
    tile(scenes=[scene], labels=[labels], classes=classes, **work)
    teacher = train_teacher(**train)
    student = distill(method="kd", cache_teacher=True, **train)
    predict(scenes=[scene], out=[out / "mask.tif", out / "mask.gpkg"], device=config.device, **work)
    scored = evaluate(beside="teacher", out=out / "work" / "evaluation", device=config.device, **work)
    shutil.copyfile(out / "work" / "evaluation" / "report.html", out / "report.html")
    return _summary(out, teacher, student, scored, progress)


def _clear(config: DemoConfig) -> None:
    """Make room for the demo: what a former one left is removed, and a folder that holds anything else is left alone."""
    out = config.out
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
        raise OutputExistsError(f"{out} exists and is no former demo", hint="name another folder with --out")
    for name in OWN:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with atomic(out / MARKER) as part:
        part.write_text(run_file(config, "demo"), encoding="utf-8")


def _summary(out: Path, teacher: Result, student: Result, scored: Result, progress: Progress) -> Result:
    files = (out / "mask.tif", out / "mask.gpkg", out / "report.html")
    rows = tuple(
        (name, f"{100 * made.data['miou']:.1f} %", f"{made.data['parameters'] / 1e6:.2f} M")
        for name, made in (("teacher", teacher), ("student", student))
    )
    progress.message(
        f"open {files[0]} and {files[1]} in QGIS (drag them onto the map: classes come named and coloured), {files[2]} in a browser"
    )
    data = {"teacher": teacher.data, "student": student.data, "evaluation": scored.data}
    return Result(paths=files, data=data, tables=(Table("validation", ("", "mIoU", "parameters"), rows),))
