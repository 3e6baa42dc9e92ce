"""How large the terms of a loss are before training begins: their values, and how hard they pull at the student, against cross-entropy."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rsdistill.batches import Batch
from rsdistill.reporting import Progress
from rsdistill.training.objectives import Objective
from rsdistill.training.ranks import mean_over_ranks

FAR_APART = 100.0
"""Two weighted terms whose gradients differ by more than this factor are worth a warning."""
REFERENCE = "ce"
"""The term that the others are measured against."""


class Pull(NamedTuple):
    """One unweighted term on average over the batches."""

    size: float
    gradient: float
    """Norm of its gradient in the network's parameters."""


def measure(objective: Objective, batches: Iterable[Batch]) -> dict[str, Pull]:
    """Return the size and the gradient norm of every term, averaged over ``batches``; the objective is left as it was."""
    kept = {name: value.clone() for name, value in objective.state_dict().items()}
    parameters = [parameter for parameter in objective.network.parameters() if parameter.requires_grad]
    if objective.method is not None:
        objective.method.schedule(0.5)
    objective.train()
    seen: dict[str, list[Pull]] = {}
    for step, batch in enumerate(batches):
        for name, term in objective(batch, step).items():
            seen.setdefault(name, []).append(Pull(float(mean_over_ranks(term.detach())), gradient_norm(term, parameters)))
    objective.load_state_dict(kept)
    return {name: Pull(*(sum(values) / len(values) for values in zip(*pulls, strict=True))) for name, pulls in seen.items()}


def gradient_norm(term: Tensor, parameters: list[nn.Parameter]) -> float:
    """Return the Euclidean norm of the gradient of ``term`` in all ``parameters`` together; the graph is kept."""
    if not term.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
    return float(mean_over_ranks(torch.cat([gradient.float().flatten() for gradient in gradients])).norm())


def balanced(pulls: dict[str, Pull], weights: dict[str, float], ratio: float) -> dict[str, float]:
    """Return weights that make each term of ``weights`` pull ``ratio`` times as hard as cross-entropy; one without a pull keeps its own."""
    reference = pulls[REFERENCE].gradient
    return {name: ratio * reference / pulls[name].gradient if pulls[name].gradient > 0 else weight for name, weight in weights.items()}


def report(pulls: dict[str, Pull], weights: dict[str, float], progress: Progress) -> None:
    """Say each term's size, weight and weighted gradient against cross-entropy's, and warn where two are far apart."""
    weighted = {name: weights.get(name, 1.0) * pull.gradient for name, pull in pulls.items()}
    reference = weighted.get(REFERENCE, 0.0)
    for name, pull in pulls.items():
        share = f", {weighted[name] / reference:.3g} of {REFERENCE}'s" if reference and name != REFERENCE else ""
        progress.message(f"{name}: {pull.size:.4g} x weight {weights.get(name, 1.0):.4g}, gradient {weighted[name]:.3g}{share}")
    pulling = {name: value for name, value in weighted.items() if value > 0}
    if pulling:
        strong, weak = max(pulling, key=lambda name: pulling[name]), min(pulling, key=lambda name: pulling[name])
        if pulling[strong] > FAR_APART * pulling[weak]:
            factor = pulling[strong] / pulling[weak]
            progress.warn(f"'{strong}' pulls {factor:.0f} times as hard as '{weak}': set its weight by --set, or use --balance 1")
