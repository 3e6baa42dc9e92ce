"""A student's training, put together: network, frozen teachers, method, batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from rsdistill.geo.tile_index import TileSet, index_path
from rsdistill.methods import load_method
from rsdistill.methods.base import Method
from rsdistill.models.card import ModelCard
from rsdistill.models.checkpoints import build_network
from rsdistill.models.weights import load_encoder_weights
from rsdistill.reporting import Progress, Result
from rsdistill.training import calibration, run
from rsdistill.training.caching import CachedTeacher, cached, check_cacheable
from rsdistill.training.canvases import CanvasTeacher, look_ahead
from rsdistill.training.loop import Fit
from rsdistill.training.objectives import DistillObjective
from rsdistill.training.prepare import Files, open_tile_set
from rsdistill.training.ranks import together, voice
from rsdistill.training.settings import LaunchConfig
from rsdistill.training.state import file_digest
from rsdistill.training.teachers import Ensemble, Teacher, load_teachers


@dataclass(frozen=True)
class Lesson:
    """What a student is taught, by whom, and how."""

    method: str
    options: dict[str, Any]
    teachers: tuple[Path, ...]
    arch: str
    arch_args: dict[str, Any]
    calibrate: int
    """Batches on which the terms are measured before training; 0 leaves that out."""
    balance: float | None
    """Gradient norm of each of the method's terms against that of cross-entropy; None keeps the method's weights."""
    cache: Path | None
    """Folder for the teachers' logits; None asks the teachers anew in every step."""
    canvases: Path
    """Folder for what teachers make of the scenes' contexts."""
    views: int
    """Turns and flips of a tile that cached teachers are asked about."""


def distill(config: LaunchConfig, lesson: Lesson, files: Files, *, serious: str, progress: Progress) -> Result:
    """Train a student as ``lesson`` says and write it to ``files``."""
    with together(config) as fabric:
        return _distill(config, lesson, files, fabric, serious, voice(fabric, progress))


def _distill(config: LaunchConfig, lesson: Lesson, files: Files, fabric: Fabric, serious: str, progress: Progress) -> Result:
    tile_set = open_tile_set(config)
    torch.manual_seed(config.seed)
    rule = load_method(lesson.method, lesson.options)
    network = build_network(lesson.arch, lesson.arch_args, len(tile_set.card.bands), len(tile_set.table))
    run.refuse_other_ratio(network, tile_set)
    loaded = load_encoder_weights(network, config.weights, offline=config.offline)
    run.introduce(progress, fabric, config, network, loaded, serious)
    tile_set = run.normalised_as(tile_set, loaded)
    with fabric.rank_zero_first():  # which fills the cache
        frozen = _teachers(lesson, rule, tile_set, fabric.device, progress)
    objective = DistillObjective(network, run.supervised(config, tile_set), rule, frozen, augmentation=config.augment, seed=config.seed)
    shown: dict[str, Any] = {"with_context": network.needs_context, "thumbnail_from": network.thumbnail_from}
    batches = run.source(config, tile_set, fabric, unlabelled=rule.semi_supervised, **shown)
    if rule.semi_supervised and not len(batches.unlabelled):
        progress.warn(f"{lesson.method} learns from unlabelled tiles and there are none: tile more scenes with --unlabelled")
    parents = lesson.teachers if rule.teachers else ()
    card = run.card_for(tile_set, network, lesson.arch, method=lesson.method, seed=config.seed, teachers=parents)

    def before(fit: Fit) -> None:
        with fabric.rank_zero_first():
            look_ahead(frozen, batches, fit.steps, progress)
        if lesson.calibrate and rule.weights:
            _calibrate(fit, rule, lesson, progress)

    return run.carry_out(config, "distill", objective, batches, card, files, fabric, progress, parents=parents, before=before)


def _teachers(
    lesson: Lesson, rule: Method, tile_set: TileSet, device: torch.device, progress: Progress
) -> tuple[Teacher | Ensemble | CachedTeacher, ...]:
    """Return the frozen teachers that the method takes, behind a cache where that was asked for."""
    if lesson.cache is None:

        def with_canvases(teacher: Teacher, card: ModelCard, path: Path) -> Teacher:
            return CanvasTeacher(teacher, card, file_digest(path), tile_set, lesson.canvases) if teacher.needs_context else teacher

        return load_teachers(lesson.teachers, rule.teachers, tile_set, with_canvases)
    loaded = load_teachers(lesson.teachers, rule.teachers, tile_set)
    if not loaded:
        return loaded
    check_cacheable(lesson.method, rule.logits_suffice)
    digests = [file_digest(path) for path in lesson.teachers]
    tiles = file_digest(tile_set.folder / "tileset.json") + file_digest(index_path(tile_set.folder))
    groups = [digests] if len(loaded) == 1 else [[digest] for digest in digests]
    return tuple(
        cached(teacher, tile_set, lesson.cache, " ".join([*group, tiles]), device, progress, views=lesson.views)
        for teacher, group in zip(loaded, groups, strict=True)
    )


def _calibrate(fit: Fit, rule: Method, lesson: Lesson, progress: Progress) -> None:
    """Measure the terms, balance them where that was asked for, and say what will be trained."""
    pulls = fit.fitting(
        lambda: calibration.measure(fit.objective, (part for step in range(lesson.calibrate) for part in fit.batches(step)))
    )
    if lesson.balance is not None:
        rule.weights = calibration.balanced(pulls, rule.weights, lesson.balance)
    calibration.report(pulls, fit.objective.weights(), progress)
