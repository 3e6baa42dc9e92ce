"""A learner whose weights, gradients and optimiser states lie in pieces on all devices, for networks that one of them cannot hold."""

from copy import deepcopy
from typing import Any, cast

from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rsdistill.models.backbones import synchronise_norms
from rsdistill.models.network import Network
from rsdistill.training.learner import Learner
from rsdistill.training.objectives import Objective
from rsdistill.training.optimisers import optimiser, ramped_average
from rsdistill.training.pieces import local, on_pieces, piece, spread, whole
from rsdistill.training.settings import TrainingConfig


def learner_for(objective: Objective, config: TrainingConfig, fabric: Fabric) -> Learner:
    """Return the learner that the strategy of ``fabric`` asks for."""
    return (ShardedLearner if isinstance(fabric.strategy, ModelParallelStrategy) else Learner)(objective, config, fabric)


class ShardedLearner(Learner):
    """As :class:`Learner`; what it saves is whole, so that any number of devices takes it back, sharded or not."""

    terms_apart = False

    def __init__(self, objective: Objective, config: TrainingConfig, fabric: Fabric) -> None:
        """Spread ``objective``, which has seen its first batch and has no critic, and make its optimiser and average."""
        self.objective, self._fabric, self.critic = objective, fabric, None
        if fabric.device.type == "cuda":
            synchronise_norms(objective.network)
        self._network = deepcopy(objective.network) if fabric.is_global_zero else None
        self.average = AveragedModel(objective.network, multi_avg_fn=on_pieces(ramped_average(config.ema))) if config.ema else None
        self.model = fabric.setup_module(objective)
        if self.average is not None:
            spread(self.average.module, cast(ModelParallelStrategy, fabric.strategy).device_mesh["data_parallel"])
        self.optimiser = fabric.setup_optimizers(optimiser(objective, config))

    def clip(self, most: float) -> float:
        """As the base class, of all pieces together."""
        return float(whole(nn.utils.clip_grad_norm_(self.objective.parameters(), most)))

    def gather(self) -> None:
        """Bring the evaluated weights together in the first process."""
        weights = whole(super().evaluated.state_dict())
        if self._network is not None:
            self._network.load_state_dict(weights)

    @property
    def evaluated(self) -> Network:
        """The whole network as it was last gathered; in the first process only."""
        return cast(Network, self._network)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights as they were last gathered; nothing in the other processes."""
        return super().weights() if self._network is not None else {}

    def tensors(self) -> dict[str, Tensor]:
        """As the base class, of the pieces on this device."""
        return {name: local(tensor) for name, tensor in super().tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        """As the base class; all processes take part, and all get it whole."""
        return cast(dict[str, Any], whole(super().state_dict()))

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """As the base class; each process takes its pieces of what was saved whole."""
        averaged = self.average.state_dict() if self.average is not None else {}
        for own, given in ((self.objective.state_dict(), saved["objective"]), (averaged, saved["average"])):
            for name, tensor in own.items():
                tensor.copy_(piece(given[name], tensor))
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        states = {
            number: {name: piece(value, parameters[number]) for name, value in state.items()}
            for number, state in saved["optimiser"]["state"].items()
        }
        self.optimiser.load_state_dict({**saved["optimiser"], "state": states})
        self._fabric.strategy.precision.load_state_dict(saved["scaler"])
        for name, parameter in self.objective.named_parameters():
            waiting = saved["gradients"].get(name)
            parameter.grad = None if waiting is None else piece(waiting, parameter)
        self.gather()
