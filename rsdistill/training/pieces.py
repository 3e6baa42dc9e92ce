"""Tensors that lie in pieces on several devices (FSDP): spread, brought together, taken back."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

UNIT = 100_000
"""Parameters from which a block of layers is brought together, used and given up by itself, and not with all the rest."""


def spread(module: nn.Module, mesh: Any) -> nn.Module:
    """Spread the parameters of ``module`` over the devices of ``mesh``; each large block, as it is called, has its own whole for that time.

    Blocks are the parts of sequences, which are called one by one; what lies in none is whole while ``module`` is called.
    """
    for sequence in reversed([each for each in module.modules() if isinstance(each, nn.Sequential)]):  # blocks inside blocks first
        for block in sequence:
            rest = sum(parameter.numel() for parameter in block.parameters() if not isinstance(parameter, DTensor))
            if not isinstance(block, nn.Sequential) and rest >= UNIT:
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def local(tensor: Tensor) -> Tensor:
    """Return this device's piece of a tensor, or all of one that does not lie in pieces."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any) -> Any:
    """Return dictionaries and lists with each tensor in pieces made whole, on the processor; all processes take part."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    return tree.full_tensor().cpu() if isinstance(tree, DTensor) else tree


def piece(value: Any, like: Tensor) -> Any:
    """Return this device's piece of a whole tensor, laid as ``like`` is; what has not the shape of ``like`` comes back as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None)


def on_pieces(update: Callable[..., None]) -> Callable[..., None]:
    """Return an update of some tensors by others, and a number, that acts on each device's own pieces."""
    return lambda moved, others, number: update([local(each) for each in moved], [local(each) for each in others], number)
