"""From a configuration to a saved model: the tile set, the machine, the loop, and the files that stand afterwards."""

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any, cast

from lightning_fabric import Fabric
from torch import nn

import rsdistill.models.checkpoints as checkpoints
from rsdistill.config import run_file
from rsdistill.data.dataset import BatchSource, Composition, open_source
from rsdistill.errors import ConfigError
from rsdistill.geo.files import atomic
from rsdistill.geo.tile_index import CARD, TileSet, index_path
from rsdistill.models.card import ClassEntry, ModelCard
from rsdistill.models.ginet import GINet
from rsdistill.models.margins import canvas_margin
from rsdistill.models.network import Network
from rsdistill.models.weights import LoadedWeights
from rsdistill.outputs.curves import draw_curves
from rsdistill.reporting import Progress, Result, Table
from rsdistill.training.logs import RunLog
from rsdistill.training.loop import Fit, Outcome
from rsdistill.training.losses import Supervised, balanced_weights
from rsdistill.training.objectives import Objective
from rsdistill.training.prepare import Files
from rsdistill.training.ranks import dismiss
from rsdistill.training.settings import TrainingConfig
from rsdistill.training.state import file_digest, fingerprint
from rsdistill.training.validation import validator

CPU_STEPS = 300
GPU_STEPS = 20_000
"""Default budgets: minutes on two cores, hours on an accelerator."""
GPU_BATCH = 8
CPU_PIXELS = 512 * 1024
"""Pixels of a step where there is no accelerator: about a second for the teacher on two cores."""


def budget(config: TrainingConfig, fabric: Fabric) -> int:
    """Return the number of steps: what was asked for, or what suits the device."""
    return config.steps or (CPU_STEPS if fabric.device.type == "cpu" else GPU_STEPS)


def _default_batch(tile: int, fabric: Fabric) -> int:
    if fabric.device.type != "cpu":
        return GPU_BATCH
    return int(2 ** max(0, min(math.log2(GPU_BATCH), round(math.log2(CPU_PIXELS / tile**2)))))


def normalised_as(tile_set: TileSet, loaded: LoadedWeights) -> TileSet:
    """Return the tile set with the normalisation that the encoder's weights were trained with, or as it is where they tell none."""
    if not loaded.mean:
        return tile_set
    return replace(tile_set, card=tile_set.card.model_copy(update={"mean": loaded.mean, "std": loaded.std}))


def supervised(config: TrainingConfig, tile_set: TileSet) -> Supervised:
    """Return the supervised terms that ``config`` names."""
    weights = balanced_weights(tile_set.card.class_pixels["train"]) if config.class_weights == "balanced" else None
    return Supervised(config.loss, weights)


def source(
    config: TrainingConfig, tile_set: TileSet, fabric: Fabric, *, with_context: bool, thumbnail_from: int = 0, unlabelled: bool = False
) -> BatchSource:
    """Return the batches of ``config``: tiles share context images only where a network reads them.

    Scenes with a side longer than ``thumbnail_from`` (0: none) also show their thumbnail. With ``unlabelled``, as many unlabelled tiles
    follow the labelled ones in each batch.
    """
    batch = config.batch or _default_batch(tile_set.card.tile, fabric)
    contexts = min(config.contexts, batch) if with_context else batch
    if batch % contexts:
        raise ConfigError(f"batch {batch} is not a multiple of contexts {contexts}", hint="every context gets the same number of tiles")
    if contexts % fabric.world_size:
        what = f"{contexts} contexts" if with_context else f"{batch} tiles"
        hint = f"use --{'contexts' if with_context else 'batch'} {fabric.world_size} or a multiple"
        raise ConfigError(f"a step of {what} does not divide among {fabric.world_size} devices", hint=hint)
    tiles = batch // contexts
    make = Composition(contexts, tiles, contexts if unlabelled else 0, with_context, config.context_side, thumbnail_from)
    return BatchSource(tile_set, make, seed=config.seed, labels_fraction=config.labels_fraction)


def refuse_other_ratio(network: Network, tile_set: TileSet) -> None:
    """Refuse a network that reads context of another scale than the tile set has.

    Raises:
        ConfigError: so it does.
    """
    ratio, there = network.context_ratio, tile_set.card.context_ratio
    if ratio not in (None, there):
        hint = f"leave context_ratio out, or give {there}"
        raise ConfigError(f"context_ratio {ratio}: the context of {tile_set.folder} is made at {there}", hint=hint)


def card_for(tile_set: TileSet, network: Network, arch: str, *, method: str, seed: int, teachers: Sequence[Path] = ()) -> ModelCard:
    """Return the card of ``network``, an ``arch`` trained on ``tile_set``; its options are written out, whatever later defaults are."""
    card = tile_set.card
    packages = ("rsdistill", "torch", "torchgeo", "timm", "segmentation-models-pytorch")
    return ModelCard(
        arch=arch,
        arch_args=network.args.model_dump(mode="json"),
        classes=tuple(cast(ClassEntry, entry) for entry in tile_set.label_table.to_card()),
        ignore=tile_set.label_table.ignore,
        bands=card.bands,
        band_names=card.band_names,
        mean=card.mean,
        std=card.std,
        dtype=card.dtype,
        nodata=card.nodata,
        pixel_size=card.pixel_size,
        context_ratio=card.context_ratio,
        tile=card.tile,
        margin=card.tile // 8 if network.stride > 1 else 0,
        method=method,
        teachers=tuple(file_digest(path) for path in teachers),
        data=file_digest(tile_set.folder / CARD),
        seed=seed,
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}} | _commit(),
    )


def _commit() -> dict[str, str]:
    """Return the commit that pip installed this package from, where it was a repository."""
    origin = json.loads(distribution("rsdistill").read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return {"commit": commit} if commit else {}


def carry_out(
    config: TrainingConfig,
    command: str,
    objective: Objective,
    batches: BatchSource,
    card: ModelCard,
    files: Files,
    fabric: Fabric,
    progress: Progress,
    *,
    parents: tuple[Path, ...] = (),
    before: Callable[[Fit], None] | None = None,
) -> Result:
    """Train ``objective`` and write the model, the log, its picture and the configuration; ``before`` sees the run before its first step.

    Raises:
        DivergedError: training left the finite numbers.
    """
    tile_set = batches.reader.tile_set
    steps = budget(config, fabric)
    digests = [*map(file_digest, (tile_set.folder / CARD, index_path(tile_set.folder), *parents)), *_scene_digests(tile_set, progress)]
    mark = fingerprint(config, str(steps), *digests)
    log = RunLog(files.log, max(1, steps // 50), tensorboard=config.tensorboard)
    validate = validator(tile_set, card, config.validation, fabric.device)
    fit = Fit(objective, batches, config, steps, validate, files.state, log, progress, fabric)
    if before is not None:
        before(fit)
    outcome = fit.run(mark)
    dismiss(fabric)
    for note in objective.method.notes if objective.method is not None else ():
        progress.warn(note)
    _write(files, fit.learner.evaluated, card, outcome)
    draw_curves(files.log, files.curves, files.model.stem)
    with atomic(files.run) as part:
        part.write_text(run_file(_resolved(config, steps, batches, files, parents, fabric), command), encoding="utf-8")
    files.state.unlink(missing_ok=True)
    return _result(files, card, outcome, _size(objective.network))


def _result(files: Files, card: ModelCard, outcome: Outcome, parameters: int) -> Result:
    figures = {"miou": outcome.figures["miou"], "pixel_accuracy": outcome.figures["pixel_accuracy"]}
    data: dict[str, Any] = {
        "model": str(files.model),
        **figures,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 2),
        "parameters": parameters,
    }
    rows: tuple[tuple[str, str], ...] = (
        ("parameters", f"{parameters / 1e6:.2f} M"),
        ("steps", str(outcome.steps)),
        ("training seconds", f"{outcome.seconds:.1f}"),
    )
    rows += tuple((f"validation {name.replace('_', ' ')}", f"{100 * value:.1f} %") for name, value in figures.items())
    return Result(paths=(files.model,), data=data, tables=(Table(f"{card.arch} ({card.method})", ("", ""), rows),))


def _scene_digests(tile_set: TileSet, progress: Progress) -> list[str]:
    """Return the fingerprints of the scenes as they are now; say which are no longer what was tiled."""
    found = []
    for number, entry in enumerate(tile_set.card.scenes):
        with open_source(tile_set, number) as scene:
            found.append(scene.fingerprint)
        if found[-1] != entry.fingerprint:
            progress.warn(f"{entry.name} has changed since it was tiled: tile again, or its labels may not fit")
    return found


def _resolved(
    config: TrainingConfig, steps: int, batches: BatchSource, files: Files, teachers: tuple[Path, ...], fabric: Fabric
) -> TrainingConfig:
    """Return ``config`` with what this machine and this workspace decided written out, so that it repeats the run elsewhere too."""
    make = batches.composition
    own: dict[str, Any] = {"steps": steps, "batch": make.contexts * make.tiles, "tiles": config.tile_folder, "out": files.model}
    own |= {"device": fabric.device.type} if config.device == "auto" else {}
    return config.model_copy(update=own | ({"teacher": teachers} if teachers else {}))


def _write(files: Files, network: Network, card: ModelCard, outcome: Outcome) -> None:
    for path, weights in ((files.last, outcome.last), (files.model, outcome.best)):
        network.load_state_dict(weights)
        if isinstance(network, GINet):
            card = card.model_copy(update={"canvas_margin": canvas_margin(network.eval())})
        checkpoints.save_model(path, network, card)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def introduce(progress: Progress, fabric: Fabric, config: TrainingConfig, network: Network, loaded: LoadedWeights, serious: str) -> None:
    """Say what starts, and once which line would make a default run a serious one."""
    size = f"{_size(network) / 1e6:.2f} M parameters"
    progress.message(f"{type(network).__name__}: {size}, {budget(config, fabric)} steps on {fabric.device}; {loaded}")
    if config.steps is None and fabric.device.type == "cpu":
        progress.message(f"this is a quick run, sized for this machine; a serious one is: {serious}")
