"""Methods side by side: the sum of several, with plain KD once."""

from collections.abc import Mapping
from itertools import chain

from torch import Tensor, nn

from rsdistill.batches import Batch, Segmentation
from rsdistill.errors import ConfigError
from rsdistill.methods.base import Method


class Combined(Method):
    """Several methods as one.

    A member's term ``t`` is called ``member.t`` here. ``kd`` keeps its name and belongs to the member called kd, else to the first that has
    it; the others give theirs up.

    Args:
        members: methods by name, in the person's order.

    Raises:
        ConfigError: a member shows the student other images than its teachers see, so that the others could not compare them.
    """

    def __init__(self, members: Mapping[str, Method]) -> None:
        super().__init__()
        for name, member in members.items():
            if type(member).prepare is not Method.prepare:
                raise ConfigError(f"{name} mixes the student's images and cannot be combined", hint=f"--method {name} alone")
        self.members = nn.ModuleDict(dict(members))
        self.teachers = max(member.teachers for member in members.values())
        self.semi_supervised = any(member.semi_supervised for member in members.values())
        self.logits_suffice = all(member.logits_suffice for member in members.values())
        self.kd_owner = next((name for name in ("kd", *members) if name in members and "kd" in members[name].weights), None)
        for name, member in members.items():
            member.notes = self.notes
            if name != self.kd_owner:
                member.weights.pop("kd", None)
            self.weights |= {self._term(name, term): weight for term, weight in member.weights.items()}

    @property
    def named(self) -> dict[str, Method]:
        """The members by name."""
        return {name: member for name, member in self.members.items() if isinstance(member, Method)}

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Set up every member and gather their critics."""
        for member in self.named.values():
            member.setup(student, *teachers[: member.teachers])
        critics = [member.critic for member in self.named.values() if member.critic is not None]
        if critics and self.critic is None:
            self.critic = nn.ModuleList(critics)

    def schedule(self, progress: float) -> None:
        """Tell every member."""
        for member in self.named.values():
            member.schedule(progress)

    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return the terms of every member."""
        terms = {name: member(batch, student, *teachers[: member.teachers]) for name, member in self.named.items()}
        kept = ((name, term, value) for name, own in terms.items() for term, value in own.items() if term in self.named[name].weights)
        return {self._term(name, term): value for name, term, value in kept}

    def critic_terms(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return the terms of every member's critic."""
        terms = {name: member.critic_terms(batch, student, *teachers[: member.teachers]) for name, member in self.named.items()}
        return dict(chain.from_iterable(((f"{name}.{term}", value) for term, value in own.items()) for name, own in terms.items()))

    @staticmethod
    def _term(member: str, term: str) -> str:
        return "kd" if term == "kd" else f"{member}.{term}"
