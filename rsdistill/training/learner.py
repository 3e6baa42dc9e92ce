"""Everything that moves while a network is trained: objective, optimisers, running average and loss scale, saved and restored as one."""

from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from rsdistill.models.backbones import synchronise_norms
from rsdistill.models.network import Network
from rsdistill.training.objectives import Objective
from rsdistill.training.optimisers import critic_optimiser, optimiser, ramped_average
from rsdistill.training.ranks import set_apart
from rsdistill.training.settings import TrainingConfig


class Learner:
    """An objective, set up by Fabric on its device, and all that its optimisation remembers from step to step."""

    terms_apart = True
    """Whether the gradient of one term can be asked for without the others."""

    def __init__(self, objective: Objective, config: TrainingConfig, fabric: Fabric) -> None:
        """Make optimisers and average for ``objective``, which has seen its first batch."""
        self.objective, self._fabric = objective, fabric
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            synchronise_norms(objective.network)
        main, critic = optimiser(objective, config), critic_optimiser(objective)
        set_apart(objective, objective.critic)
        self.model, *wrapped = fabric.setup(objective, *([main] if critic is None else [main, critic]))
        """The objective as Fabric calls it."""
        self.optimiser: Any = wrapped[0]
        self.critic: Any = wrapped[1] if critic is not None else None
        """The critic's own optimiser, None without a critic."""
        self.average = AveragedModel(objective.network, multi_avg_fn=ramped_average(config.ema)) if config.ema else None

    def clip(self, most: float) -> float:
        """Scale the gradients that wait to a norm of ``most``, infinity to leave them alone; return the norm that they had."""
        norm = self._fabric.clip_gradients(self.model, self.optimiser, max_norm=most, error_if_nonfinite=False)
        return float(cast(Tensor, norm))

    def move(self) -> None:
        """Let the optimiser act on the gradients that wait, and the average follow."""
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.objective.network)

    def move_critic(self) -> None:
        """Let the critic's optimiser act on the critic's gradients."""
        self.critic.step()
        self.critic.zero_grad(set_to_none=True)

    def forget_gradients(self) -> None:
        """Drop the gradients that wait."""
        for each in filter(None, (self.optimiser, self.critic)):
            each.zero_grad(set_to_none=True)

    @property
    def evaluated(self) -> Network:
        """The network that is validated and written: the averaged one where there is an average."""
        return cast(Network, self.average.module) if self.average is not None else self.objective.network

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the evaluated network's weights."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.evaluated.state_dict().items()}

    def gather(self) -> None:
        """Make :attr:`evaluated` and :meth:`weights` say what is learned by now; all processes take part."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and statistics of the objective and of the average by their names."""
        averaged = self.average.state_dict() if self.average is not None else {}
        return self.objective.state_dict() | {f"average.{name}": tensor for name, tensor in averaged.items()}

    def broken_weight(self) -> str | None:
        """Return the name of the first weight or statistic that is not finite, None where all are."""
        return next((name for name, one in self.tensors().items() if one.is_floating_point() and not one.isfinite().all()), None)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on exactly where it is, gradients included that still wait for others; all processes ask."""
        gradients = {name: parameter.grad for name, parameter in self.objective.named_parameters() if parameter.grad is not None}
        return {
            "objective": self.objective.state_dict(),
            "gradients": gradients,
            "optimiser": self.optimiser.state_dict(),
            "critic": self.critic.state_dict() if self.critic is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "scaler": self._fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, on whatever device."""
        self.objective.load_state_dict(saved["objective"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.critic is not None:
            self.critic.load_state_dict(saved["critic"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self._fabric.strategy.precision.load_state_dict(saved["scaler"])
        for name, parameter in self.objective.named_parameters():
            waiting = saved["gradients"].get(name)
            parameter.grad = None if waiting is None else torch.empty_like(parameter).copy_(waiting)
