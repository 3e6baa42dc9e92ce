"""Run files: the configuration that repeats a result, beside it; the last that a run writes, and so what tells that it has finished."""

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rsdistill.config import run_file
from rsdistill.geo.files import atomic
from rsdistill.inference.choosing import choice_in
from rsdistill.inference.journal import state_of, unfinished
from rsdistill.inference.loading import Choice
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.products import Products
from rsdistill.inference.settings import MapConfig, ScaleConfig

CHOICES = 200
"""Bytes that a run file may grow by, once it is known what was chosen."""


@contextmanager
def beside(scene: Path, products: Products, config: ScaleConfig, mapper: Mapper) -> Iterator[None]:
    """Write the configuration that repeats the results of one scene beside each of them, once the block that makes them ends well.

    Its place on the disk is taken before: results that stand are not called a failure for want of the last kilobyte.
    """
    with ExitStack() as stack:
        parts = [stack.enter_context(atomic(path)) for path in _runs_of(products.paths)]
        for part in parts:
            part.write_text(run_text(scene, products, config, mapper) + " " * CHOICES, encoding="utf-8")
        yield
        for part in parts:
            with part.open("r+b") as file:
                file.truncate(file.write(run_text(scene, products, config, mapper).encode()))


def run_text(scene: Path, products: Products, config: ScaleConfig, mapper: Mapper) -> str:
    """Return what repeats the results of one scene, with all that was chosen for it."""
    chosen = {"backend": mapper.config.backend, "precision": mapper.config.precision, "tile": mapper.config.tile}
    return run_file(_alone(scene, products, config).model_copy(update={"model": mapper.path, **chosen}), "predict")


def _alone(scene: Path, products: Products, config: ScaleConfig) -> ScaleConfig:
    """Return the configuration of a run of one of the scenes."""
    own = {"scenes": (scene,), "out": products.outs, "confidence": products.confidence, "probabilities": products.probabilities}
    return config.model_copy(update=own)


def stands(scene: Path, products: Products, config: ScaleConfig, model: Path) -> bool:
    """Tell whether an earlier run of this command has finished ``scene``: its files stand, and say so of the scene as it is.

    The run files are the last that a run writes. What it may have chosen for itself is not compared, nor how the work was shared out.
    """
    runs = _runs_of(products.paths)
    if unfinished(products.paths[0]) or not all(path.is_file() for path in (*products.paths, *runs)):
        return False
    changed = max(path.stat().st_mtime_ns for path in (scene, model, config.aoi) if path and path.exists())
    free = {name for name in ("backend", "precision", "tile", "device") if getattr(config, name) in (None, "auto")}
    free |= {"threads", "dry_run", "work", *(set(ScaleConfig.model_fields) - set(MapConfig.model_fields))}
    wanted = tomllib.loads(run_file(_alone(scene, products, config).model_copy(update={"model": model}), "predict"))
    try:
        told = [tomllib.loads(path.read_text(encoding="utf-8")) for path in runs]
    except (OSError, ValueError):
        return False
    same = all({**one, **dict.fromkeys(free)} == {**wanted, **dict.fromkeys(free)} for one in told)
    return same and changed <= min(path.stat().st_mtime_ns for path in runs)


def earlier_choice(left: Iterable[Products], finished: Iterable[Products]) -> Choice | None:
    """Return what an earlier run chose to run the model on: as the state of what is left says, or the run file of what it finished."""
    marks = [state_of(products.paths[0]) for products in left]
    marks += [{"options": tomllib.loads(_runs_of(products.paths)[0].read_text(encoding="utf-8"))} for products in finished]
    return next((choice for mark in marks if (choice := choice_in(mark))), None)


def _runs_of(paths: Sequence[Path]) -> list[Path]:
    return sorted({path.with_name(f"{path.stem}.run.toml") for path in paths})
