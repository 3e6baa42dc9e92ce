"""``compare``: methods × seeds under one budget, always beside ``ce`` and ``kd``; what has finished is not run again."""

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rsdistill.config import run_file
from rsdistill.reporting import SILENT, Progress, Result, Table
from rsdistill.training.settings import TrainingConfig

BASELINES = ("ce", "kd")
OWN = {"methods", "seeds", "budget", "out", "seed", "resume", "overwrite", "max_seconds", "devices"}
"""Options that are compare's own; all others are passed on to every run."""


RESULTS = ("comparison.json", "comparison.md", "comparison.png", "report.html")


class CompareConfig(TrainingConfig):
    """Options of ``compare``; those of ``distill`` hold for every run."""

    methods: tuple[str, ...] = Field(BASELINES, min_length=1, description="Methods, comma-separated; ce and kd are always added.")
    seeds: int = Field(3, ge=1, description="Runs of each method, with seeds 0, 1, …")
    budget: tuple[Literal["steps", "seconds"], ...] = Field(
        ("steps", "seconds"),
        min_length=1,
        description="Budgets that are equal: training steps, wall-clock (--max-seconds, or what kd took), or both.",
    )
    teacher: tuple[Path, ...] = Field((), description="Teacher model, a path or a name in WORK (default teacher; repeat for more).")
    student: str = Field("small", description="Student: tiny, small, base, linear, or another --arch.")
    backbone: str | None = Field(None, description="Encoder of the student by its timm name.")
    arch_set: dict[str, Any] = Field({}, description="Options of the student's network (repeat for more).")
    set: dict[str, Any] = Field({}, description="Options of the methods, such as ifvd.weight=10 (repeat for more).")
    cache_teacher: bool = Field(False, description="Ask the teacher once a tile; features are then out of reach, see distill.")
    teacher_views: Literal[1, 8] = Field(1, description="Turns and flips of each tile that a cached teacher is asked about, see distill.")
    devices: int = Field(1, ge=1, description="Devices of this machine that each run is trained on, one process each.")


def compare(*, progress: Progress = SILENT, **options: Any) -> Result:
    """Train the same student by several methods, several seeds each, under equal steps and under equal wall-clock, and compare them.

    It needs a tile set and a teacher. A run that has finished is not repeated. The result is WORK/compare/ with comparison.json,
    comparison.md, comparison.png and report.html.
    """
    config = CompareConfig.of(**options)
    from rsdistill.geo.files import refuse_existing_in
    from rsdistill.geo.locking import locked
    from rsdistill.training.prepare import open_tile_set

    out = config.out or config.work / "compare"
    refuse_existing_in(out, RESULTS, overwrite=True)  # a comparison is gone on with
    open_tile_set(config)
    methods = tuple(dict.fromkeys((*BASELINES, *config.methods)))
    _check(config, methods)
    with locked(out):
        return _compare(config, methods, out, progress)


def _compare(config: CompareConfig, methods: tuple[str, ...], out: Path, progress: Progress) -> Result:
    from rsdistill.outputs.comparison import summarise

    runs: list[dict[str, Any]] = []
    with progress.task("compare", total=len(config.budget) * len(methods) * config.seeds) as bar:
        for budget in config.budget:
            limit = _seconds(config, runs) if budget == "seconds" else None
            for seed in range(config.seeds):
                for method in methods:
                    runs.append(_run(config, out / "runs", method, seed, budget, limit, progress))
                    bar.advance(1, method=method, miou=runs[-1]["miou"])
    comparison = {
        "budgets": {budget: summarise([run for run in runs if run["budget"] == budget]) for budget in config.budget},
        "runs": runs,
    }
    return _write(config, out, comparison)


def _check(config: CompareConfig, methods: tuple[str, ...]) -> None:
    """Refuse what would stop the comparison half way: an unknown method or option, a teacher that is missing."""
    from rsdistill.inference.loading import find_model
    from rsdistill.methods import load_method
    from rsdistill.models.card import read_card

    for method in methods:
        load_method(method, _own(config, method))
    for named in config.teacher or (Path("teacher"),):
        read_card(find_model(config.work, named))


def _own(config: CompareConfig, method: str) -> dict[str, Any]:
    """Return the options of ``--set`` that are for ``method``."""
    return {key: value for key, value in config.set.items() if key.partition(".")[0] in method.split("+")}


def _seconds(config: CompareConfig, runs: list[dict[str, Any]]) -> float:
    """Return the wall-clock budget: what was asked for, or the mean training time of ``kd`` under equal steps."""
    if config.max_seconds:
        return config.max_seconds
    kd = [run["seconds"] for run in runs if run["method"] == "kd"]
    if not kd:
        from rsdistill.errors import ConfigError

        raise ConfigError("--budget seconds needs --max-seconds", hint="or --budget steps,seconds, which takes the time of kd")
    return max(0.01, round(sum(kd) / len(kd), 2))


def _run(
    config: CompareConfig, folder: Path, method: str, seed: int, budget: str, limit: float | None, progress: Progress
) -> dict[str, Any]:
    """Train and measure one student in a process of its own, so that its peak memory is its own; or read what an earlier call left."""
    name = f"{method.replace('+', '-').replace(':', '.')}.{budget}.{seed}"
    record = folder / f"{name}.json"
    passed = config.model_dump(exclude=OWN, exclude_none=True) | {"method": method, "seed": seed, "out": folder / f"{name}.safetensors"}
    passed["set"] = _own(config, method)
    if limit is not None:
        passed |= {"max_seconds": limit, "steps": 1_000_000}
    if config.devices > 1:
        passed["devices"] = config.devices
    mark = hashlib.sha256(json.dumps(passed, sort_keys=True, default=str).encode()).hexdigest()
    if record.exists() and (known := json.loads(record.read_text())).get("fingerprint") == mark:
        return dict(known)
    progress.message(f"{method}, seed {seed}, equal {budget}")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        figures = pool.submit(_measured, passed | {"overwrite": True, "resume": True}).result()
    page = f"{folder.name}/{name}.evaluation/report.html"
    made = {"method": method, "seed": seed, "budget": budget, **figures, "report": page, "fingerprint": mark}
    from rsdistill.geo.files import atomic

    with atomic(record) as part:
        part.write_text(json.dumps(made, indent=1))
    return made


def _measured(options: dict[str, Any]) -> dict[str, Any]:
    """Distill and evaluate; runs in a fresh process."""
    from rsdistill.commands.evaluate import evaluate

    made, peak = _distilled(options | {"calibrate": 0})
    passed = {key: options[key] for key in ("work", "tiles", "device", "threads") if key in options}
    scored = evaluate(model=options["out"], out=options["out"].with_suffix(".evaluation"), overwrite=True, **passed).data
    return {
        **{key: scored[key] for key in ("miou", "pixel_accuracy", "boundary_iou")},
        "per_class": {name: figures["iou"] for name, figures in scored["per_class"].items()},
        "steps": made["steps"],
        "seconds": made["seconds"],
        "ms_per_step": 1000 * made["seconds"] / made["steps"],
        "peak_mb": peak / 2**20,
    }


def _distilled(options: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Distill, and return what the command tells and the peak memory of a process in bytes.

    On several devices that is a command line of its own, which each further process begins with.
    """
    from rsdistill.commands.distill import DistillConfig, distill
    from rsdistill.inference.contestants import memory

    if "devices" not in options:
        return distill(**options).data, memory(peak=True)
    import resource
    import subprocess
    import sys

    from rsdistill.errors import RsdistillError

    line = ["-m", "rsdistill", "distill", "--config", str(options["out"].with_suffix(".options.toml")), "--overwrite", "--resume", "--json"]
    options["out"].parent.mkdir(parents=True, exist_ok=True)
    options["out"].with_suffix(".options.toml").write_text(run_file(DistillConfig.of(**options), "distill"), encoding="utf-8")
    ended = subprocess.run([sys.executable, *line, "-q"], capture_output=True, text=True, check=False)
    if ended.returncode:
        said = (ended.stderr.splitlines() or ["distill ended without a word"])[-1].removeprefix("rsdistill: ")
        error = RsdistillError(said, hint=f"by itself: rsdistill distill --config {options['out'].with_suffix('.options.toml')}")
        error.exit_code = ended.returncode
        raise error
    return json.loads(ended.stdout), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _resolved(config: CompareConfig, out: Path, runs: list[dict[str, Any]]) -> CompareConfig:
    """Return ``config`` with all written out that was found in the workspace, or measured on this machine."""
    from rsdistill.inference.loading import find_model

    own: dict[str, Any] = {"out": out, "tiles": config.tile_folder}
    own["teacher"] = tuple(find_model(config.work, named) for named in config.teacher or (Path("teacher"),))
    own["steps"] = next((run["steps"] for run in runs if run["budget"] == "steps"), config.steps)
    own["max_seconds"] = _seconds(config, runs) if "seconds" in config.budget else config.max_seconds
    return config.model_copy(update=own)


def _write(config: CompareConfig, out: Path, comparison: dict[str, Any]) -> Result:
    from rsdistill.geo.files import atomic
    from rsdistill.outputs.comparison import draw_comparison, markdown, write_comparison

    options = run_file(_resolved(config, out, comparison["runs"]), "compare")
    run = out / "comparison.run.toml"
    figures, text, picture, page = paths = tuple(out / name for name in RESULTS)
    for path, content in ((figures, json.dumps(comparison, indent=1)), (text, markdown(comparison)), (run, options)):
        with atomic(path) as part:
            part.write_text(content, encoding="utf-8")
    draw_comparison(comparison, picture)
    write_comparison(comparison, page, [(f"rsdistill compare --config {run}", options)])
    tables = tuple(
        Table(
            f"equal {budget}",
            ("method", "mIoU", "± sd", "to ce", "ms/step", "MB"),
            tuple(
                (
                    row["method"],
                    f"{100 * row['miou']:.1f}",
                    f"{100 * row['miou_sd']:.1f}",
                    f"{100 * row['to_ce']:+.1f}",
                    f"{row['ms_per_step']:.0f}",
                    f"{row['peak_mb']:.0f}",
                )
                for row in rows
            ),
        )
        for budget, rows in comparison["budgets"].items()
    )
    return Result(paths=paths, data=comparison, tables=tables)
