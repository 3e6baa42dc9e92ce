"""A teacher's training, put together: network, local affinity distillation, batches."""

from typing import Any, Literal

import torch

from rsdistill.methods.lad import LAD
from rsdistill.models.checkpoints import build_network
from rsdistill.models.ginet import GINet
from rsdistill.models.weights import load_encoder_weights
from rsdistill.reporting import Progress, Result
from rsdistill.training import run
from rsdistill.training.objectives import TeacherObjective
from rsdistill.training.prepare import Files, open_tile_set
from rsdistill.training.ranks import together, voice
from rsdistill.training.settings import LaunchConfig


def train(
    config: LaunchConfig,
    arch: str,
    arch_args: dict[str, Any],
    files: Files,
    *,
    lad: Literal["mse", "kl", "none"],
    lad_weight: float,
    sharded: bool,
    serious: str,
    progress: Progress,
) -> Result:
    """Train the network ``arch`` on labels alone and write it to ``files``."""
    with together(config, sharded=sharded) as fabric:
        progress = voice(fabric, progress)
        tile_set = open_tile_set(config)
        torch.manual_seed(config.seed)
        network = build_network(arch, arch_args, len(tile_set.card.bands), len(tile_set.table))
        run.refuse_other_ratio(network, tile_set)
        loaded = load_encoder_weights(network, config.weights, offline=config.offline)
        run.introduce(progress, fabric, config, network, loaded, serious)
        tile_set = run.normalised_as(tile_set, loaded)
        affinity = LAD(mode=lad, weight=lad_weight) if lad != "none" and isinstance(network, GINet) else None
        objective = TeacherObjective(network, run.supervised(config, tile_set), augmentation=config.augment, seed=config.seed, lad=affinity)
        batches = run.source(config, tile_set, fabric, with_context=network.needs_context, thumbnail_from=network.thumbnail_from)
        card = run.card_for(tile_set, network, arch, method="supervised", seed=config.seed)
        return run.carry_out(config, "train_teacher", objective, batches, card, files, fabric, progress)
