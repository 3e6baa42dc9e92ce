"""What is minimised: a teacher's own loss, or a student's loss against frozen teachers; tensors in, named terms out."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from rsdistill.batches import Batch, Segmentation
from rsdistill.data import augment
from rsdistill.methods.base import Method, detached
from rsdistill.models.ginet import GINet
from rsdistill.models.network import Network
from rsdistill.models.pointwise import quicken
from rsdistill.training.losses import Supervised, cross_entropy

AUXILIARY = 0.4
"""Weight of the cross-entropy on auxiliary heads (PSPNet, Zhao et al. 2017)."""


Seen = tuple[Batch, Segmentation, tuple[Segmentation, ...]]
"""What a critic judges: a batch, and the outputs of the student and of the teachers on it."""


class Objective(nn.Module):
    """A network, what it learns from, and what must be kept to resume: everything registered here but the teachers."""

    network: Network
    method: Method | None
    seen: Seen | None = None
    """What the critic may judge of the last forward pass, detached."""

    def __init__(self, network: Network, supervised: Supervised, *, augmentation: float, seed: int) -> None:
        super().__init__()
        self.network, self.supervised = network, supervised
        self.method = None
        self.augmentation, self.seed = augmentation, seed

    @property
    def critic(self) -> nn.Module | None:
        """The network that is trained against this one, if there is one."""
        return self.method.critic if self.method is not None else None

    def weights(self) -> dict[str, float]:
        """Return the weight of every term."""
        own = {"ce": 1.0, "dice": 1.0, "focal": 1.0, "aux": AUXILIARY, "global": AUXILIARY}
        return own | (self.method.weights if self.method is not None else {})

    def generator(self, step: int) -> torch.Generator:
        """Return the generator of everything random in ``step``; seeding by step makes resuming exact."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)

    def begin(self, batch: Batch) -> None:
        """Make what depends on shapes and device, from one batch, before optimisers are built."""
        quicken(self, batch.image.device)

    def critic_terms(self, seen: Seen | None) -> dict[str, Tensor]:
        """Return the terms of the critic on what was ``seen``; none without a critic."""
        if seen is None or self.method is None:
            return {}
        batch, student, taught = seen
        return self.method.critic_terms(batch, student, *taught)


class TeacherObjective(Objective):
    """The loss of a network that learns from labels alone; a GINet adds its global branch and local affinity distillation.

    ``CE(fused, y) + 0.4 CE(global, y_context) + 0.4 CE(aux, y) + w·LAD``; other networks keep the first and the auxiliary term.
    """

    def __init__(self, network: Network, supervised: Supervised, *, augmentation: float, seed: int, lad: Method | None = None) -> None:
        super().__init__(network, supervised, augmentation=augmentation, seed=seed)
        self.method = lad

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the unweighted terms of one batch."""
        batch = augment.apply(batch, augment.draw(batch, self.generator(step), strength=self.augmentation))
        if not isinstance(self.network, GINet):
            return supervised_terms(self.supervised, self.network(batch.image, batch.context), batch.label)
        branches = self.network.training_outputs(batch.image, batch.context)
        terms = supervised_terms(self.supervised, branches.fused, batch.label)
        if batch.context is not None and batch.context.label is not None:
            terms["global"] = cross_entropy(branches.global_.logits, batch.context.label)
        if self.method is not None:
            terms |= self.method(batch, branches.global_, branches.local)
        return terms


class DistillObjective(Objective):
    """The loss of a student: its supervised terms and what a method asks of it and of its frozen teachers.

    Teachers, which are frozen and take a batch, see each tile as it lies in the scene; the student sees it turned, flipped and re-lit, and
    the teachers' outputs are turned with it.
    """

    def __init__(
        self, network: Network, supervised: Supervised, method: Method, teachers: Sequence[nn.Module], *, augmentation: float, seed: int
    ) -> None:
        super().__init__(network, supervised, augmentation=augmentation, seed=seed)
        self.method: Method = method
        self._teachers = tuple(teachers)  # a tuple hides them from state_dict(), parameters() and train()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the student, the method and the hidden teachers."""
        for teacher in self._teachers:
            teacher.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def begin(self, batch: Batch) -> None:
        """Let the method make its adapters and critics from the outputs on one batch; the student is left as it was."""
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            self.method.setup(self.network(batch.image, batch.context), *self._teach(batch))
        self.network.train(training)
        super().begin(batch)
        for teacher in self._teachers:
            quicken(teacher, batch.image.device)

    def _teach(self, batch: Batch) -> tuple[Segmentation, ...]:
        with torch.no_grad():
            return tuple(teacher(batch) for teacher in self._teachers)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the unweighted terms of one batch."""
        generator = self.generator(step)
        drawn = augment.draw(batch, generator, strength=self.augmentation)
        taught = tuple(augment.turn_segmentation(output, drawn.element) for output in self._teach(batch))
        moved = augment.apply(batch, drawn)
        shown = self.method.prepare(moved, generator)
        student = self.network(shown.image, shown.context)
        self.seen = (moved, detached(student), taught) if self.critic is not None else None
        return supervised_terms(self.supervised, student, shown.label) | self.method(moved, student, *taught)


def supervised_terms(supervised: Supervised, output: Segmentation, label: Tensor) -> dict[str, Tensor]:
    """Return the supervised terms of a network's output, with ``aux`` where it has an auxiliary head."""
    terms = supervised(output.logits, label)
    if output.aux is not None:
        terms["aux"] = cross_entropy(output.aux, label)
    return terms
