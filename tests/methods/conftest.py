"""What the methods' tests share: small random cases, and the arithmetic of printed equations in Python's floats."""

import math
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsdistill.batches import IGNORE, Batch, Segmentation


class Case(NamedTuple):
    """A batch, and what a student and its teachers say of it; every map is a leaf that would take a gradient."""

    batch: Batch
    student: Segmentation
    teachers: tuple[Segmentation, ...]

    @property
    def teacher(self):
        return self.teachers[0]

    def run(self, method):
        return method(self.batch, self.student, *self.teachers)

    def values(self, method):
        """The terms as floats."""
        return {term: value.item() for term, value in self.run(method).items()}

    def same(self):
        """The case in which the student is its first teacher."""
        twin = Segmentation(*(maps.detach().clone().requires_grad_() for maps in self.teacher[:2]))
        return self._replace(student=twin, teachers=(self.teacher,) * len(self.teachers))

    def with_student(self, change, field="features"):
        """The case with one of the student's maps changed."""
        return self._replace(student=changed(self.student, change, field))

    def with_teachers(self, change, field="features"):
        """The case with one of every teacher's maps changed."""
        return self._replace(teachers=tuple(changed(teacher, change, field) for teacher in self.teachers))

    def rows(self, rows):
        """The case with its images taken in the order of ``rows``."""
        batch = Batch(*(part[rows] if isinstance(part, torch.Tensor) else part for part in self.batch))
        student, *teachers = (
            Segmentation(*(maps.detach()[rows].requires_grad_() for maps in outputs[:2])) for outputs in (self.student, *self.teachers)
        )
        return Case(batch, student, tuple(teachers))

    def pixels(self):
        """Yield (image, row, col, label) of every pixel that takes part; maps must lie at tile resolution."""
        part = self.batch.valid & (self.batch.label != IGNORE)
        for n, row, col in part.nonzero().tolist():
            yield n, row, col, int(self.batch.label[n, row, col])


def changed(outputs, change, field):
    return outputs._replace(**{field: change(getattr(outputs, field).detach()).requires_grad_()})


def make_case(
    seed=0,
    *,
    images=2,
    classes=3,
    tile=(5, 4),
    student=None,
    teacher=None,
    widths=(4, 4),
    teachers=1,
    masked=True,
    dtype=torch.float64,
):
    """Return a random case; sizes default to the tile's, and ``masked`` hides pixels by label and others by validity."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def outputs(width, size):
        return Segmentation((2 * draw(images, classes, *size)).requires_grad_(), draw(images, width, *size).requires_grad_())

    label = torch.randint(0, classes, (images, *tile), generator=generator)
    valid = torch.ones(images, *tile, dtype=torch.bool)
    if masked:
        label[:, 0, ::2] = IGNORE
        valid[:, -1, 1:] = False
    corner = torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    batch = Batch(draw(images, 3, *tile), label, valid, torch.ones(images, dtype=torch.bool), None, corner.expand(images, 4))
    own = outputs(widths[0], student or tile)
    return Case(batch, own, tuple(outputs(widths[1], teacher or tile) for _ in range(teachers)))


class ByHand:
    """Arithmetic on lists of floats, as it stands in the papers."""

    @staticmethod
    def at(maps, n, row, col):
        return maps[n, :, row, col].tolist()

    @staticmethod
    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    @staticmethod
    def softmax(values, tau=1.0):
        powers = [math.exp(value / tau) for value in values]
        return [power / sum(powers) for power in powers]

    @staticmethod
    def kl(first, second):
        return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))

    @staticmethod
    def dot(first, second):
        return sum(a * b for a, b in zip(first, second, strict=True))

    @classmethod
    def cosine(cls, first, second):
        return cls.dot(first, second) / math.sqrt(cls.dot(first, first) * cls.dot(second, second))

    @classmethod
    def pearson(cls, first, second):
        centred = [[value - cls.mean(values) for value in values] for values in (first, second)]
        return cls.cosine(*centred)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.fixture
def largest():
    """A context that measures the largest tensor made inside it."""
    return Largest()


@pytest.fixture
def case():
    """A maker of small random cases."""
    return make_case


@pytest.fixture
def by_hand():
    """The arithmetic of printed equations."""
    return ByHand


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
