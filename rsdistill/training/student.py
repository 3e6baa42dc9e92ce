"""A student's training, put together: network, frozen teachers, method, batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsdistill.errors import CheckpointError
from rsdistill.geo.tile_index import TileSet
from rsdistill.methods import load_method
from rsdistill.methods.base import Method
from rsdistill.models.card import ModelCard
from rsdistill.models.checkpoints import build_network, load_model
from rsdistill.models.network import Network
from rsdistill.models.weights import load_encoder_weights
from rsdistill.reporting import Progress, Result
from rsdistill.training import calibration, run
from rsdistill.training.loop import Fit
from rsdistill.training.objectives import DistillObjective
from rsdistill.training.prepare import Files, open_tile_set
from rsdistill.training.settings import TrainingConfig


@dataclass(frozen=True)
class Lesson:
    """What a student is taught, by whom, and how."""

    method: str
    options: dict[str, Any]
    teachers: tuple[Path, ...]
    arch: str
    arch_args: dict[str, Any]
    labels_fraction: float
    calibrate: int
    """Batches on which the terms are measured before training; 0 leaves that out."""
    balance: float | None
    """Gradient norm of each of the method's terms against that of cross-entropy; None keeps the method's weights."""


def distill(config: TrainingConfig, lesson: Lesson, files: Files, *, serious: str, progress: Progress) -> Result:
    """Train a student as ``lesson`` says and write it to ``files``."""
    tile_set = open_tile_set(config)
    fabric = run.fabric_for(config)
    torch.manual_seed(config.seed)
    rule = load_method(lesson.method, lesson.options)
    network = build_network(lesson.arch, lesson.arch_args, len(tile_set.card.bands), len(tile_set.table))
    run.introduce(progress, fabric, config, network, load_encoder_weights(network, config.weights, offline=config.offline), serious)
    frozen = _frozen(lesson.teachers, rule.teachers, tile_set)
    objective = DistillObjective(network, run.supervised(config, tile_set), rule, frozen, augmentation=config.augment, seed=config.seed)
    with_context = network.needs_context or any(teacher.needs_context for teacher in frozen)
    batches = run.source(
        config, tile_set, with_context=with_context, unlabelled=rule.semi_supervised, labels_fraction=lesson.labels_fraction
    )
    card = run.card_for(tile_set, network, lesson.arch, method=lesson.method, seed=config.seed)

    def before(fit: Fit) -> None:
        for note in rule.notes:
            progress.warn(note)
        if lesson.calibrate and rule.weights:
            _calibrate(fit, rule, lesson, progress)

    parents = lesson.teachers if rule.teachers else ()
    return run.carry_out(config, "distill", objective, batches, card, files, fabric, progress, parents=parents, before=before)


def _calibrate(fit: Fit, rule: Method, lesson: Lesson, progress: Progress) -> None:
    """Measure the terms, balance them where that was asked for, and say what will be trained."""
    pulls = calibration.measure(fit.objective, (fit.batch(step) for step in range(lesson.calibrate)))
    if lesson.balance is not None:
        rule.weights = calibration.balanced(pulls, rule.weights, lesson.balance)
    calibration.report(pulls, fit.objective.weights(), progress)


def _frozen(paths: tuple[Path, ...], wanted: int, tile_set: TileSet) -> list[Network]:
    """Return ``wanted`` teachers; the last one serves again where fewer were given."""
    if not wanted:
        return []
    networks = []
    for path in paths:
        network, card = load_model(path)
        check_fit(card, tile_set, path)
        networks.append(network)
    return (networks + [networks[-1]] * wanted)[: max(wanted, 1)]


def check_fit(card: ModelCard, tile_set: TileSet, path: Path) -> None:
    """Check that a teacher reads the bands and answers the classes of ``tile_set``, in the same order and scale.

    Raises:
        CheckpointError: with both values.
    """
    ours = tile_set.card
    pairs = {
        "classes": ([entry["id"] for entry in card.classes], list(tile_set.table.ids)),
        "bands": (list(card.bands), list(ours.bands)),
        "mean": ([round(value, 3) for value in card.mean], [round(value, 3) for value in ours.mean]),
        "std": ([round(value, 3) for value in card.std], [round(value, 3) for value in ours.std]),
    }
    for what, (theirs, here) in pairs.items():
        if theirs != here:
            raise CheckpointError(
                f"{path} has {what} {theirs}; the tile set {tile_set.folder} has {here}", hint="train the teacher on this tile set"
            )
