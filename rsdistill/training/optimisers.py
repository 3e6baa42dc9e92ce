"""How weights move: optimisers, the polynomial schedule with warm-up, and the running average."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from rsdistill.training.objectives import Objective
from rsdistill.training.settings import TrainingConfig

Tensors = tuple[Tensor, ...] | list[Tensor]

CRITIC_LR = 4e-4
CRITIC_BETAS = (0.9, 0.99)


def optimiser(objective: Objective, config: TrainingConfig) -> Optimizer:
    """Return the optimiser of everything that learns but the critic; every group keeps its peak rate under ``peak``.

    Norms and biases (parameters of fewer than two dimensions) are not decayed; an encoder that starts from given weights moves slower.
    """
    slow = config.encoder_lr if objective.network.pretrained else 1.0
    apart = {id(parameter) for parameter in objective.critic.parameters()} if objective.critic is not None else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and id(parameter) not in apart:
            key = (name.startswith("network.") and "encoder" in name, parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    settings: list[dict[str, Any]] = []
    for (encoder, decayed), parameters in groups.items():
        peak = config.peak_lr * (slow if encoder else 1.0)
        settings.append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": config.decay if decayed else 0.0})
    return AdamW(settings) if config.optimizer == "adamw" else SGD(settings, momentum=0.9)


def critic_optimiser(objective: Objective) -> Optimizer | None:
    """Return the critic's own optimiser, None where there is no critic."""
    if objective.critic is None:
        return None
    return Adam(objective.critic.parameters(), lr=CRITIC_LR, betas=CRITIC_BETAS)


def learning_rate_factor(share: float, warmup: float, power: float) -> float:
    """Return the factor of the peak learning rate when ``share`` of the budget is spent: a linear rise, then ``(1 − share')^power``."""
    if share < warmup:
        return (share + 0.02 * warmup) / (1.02 * warmup)
    return max(0.0, 1 - (share - warmup) / (1 - warmup)) ** power


def ramped_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return the update of an exponential moving average whose decay grows from 0.1 to ``decay``, so that short runs forget their start."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        number = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + number) / (10 + number)))

    return update
