"""Methods side by side: the sum of several, with plain KD once."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rsdistill.batches import Batch, Segmentation
from rsdistill.errors import ConfigError
from rsdistill.methods.base import Method


class Combined(Method):
    """Several methods as one.

    A member's term ``t`` is called ``member.t`` here; ``kd`` keeps its name and belongs to the member called kd, else to the first
    that has it. Members after it lose theirs.

    Args:
        members: methods by name, in the order of the person's choice.

    Raises:
        ConfigError: a member shows the student other images than its teachers see, which the others' terms could not know.
    """

    def __init__(self, members: Mapping[str, Method]) -> None:
        super().__init__()
        for name, member in members.items():
            if type(member).prepare is not Method.prepare:
                raise ConfigError(f"{name} mixes the student's images and cannot be combined", hint=f"--method {name} alone")
        self.members = nn.ModuleDict({name.replace(".", "_"): member for name, member in members.items()})
        self.teachers = max(member.teachers for member in members.values())
        owner = kd_owner(members)
        for name, member in members.items():
            if name != owner:
                member.weights.pop("kd", None)
            member.notes = self.notes
        self._named = dict(members)
        self.weights = {self._term(name, term): weight for name, member in members.items() for term, weight in member.weights.items()}
