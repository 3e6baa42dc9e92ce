"""What a distillation method is, and the arithmetic that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rsdistill.batches import IGNORE, Batch, Segmentation

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""λ of one term; 0 leaves the term out, and with it what it costs."""
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""τ > 0 by which logits are divided before a softmax."""

DEAD = 1e-8
"""A vector shorter than this has no direction; features live many orders of magnitude above."""


class Method(nn.Module, ABC):
    """What goes from teachers to a student: tensors in, named and unweighted loss terms out.

    The training loop owns ``eval()``, ``no_grad()``, devices and gradient steps. Calling a method guards what every paper's loss needs:
    it makes the modules that are missing, cuts the teachers' graph, and runs :meth:`forward` in float32 with autocast off (1e-8, the
    probability of a class that is out of the question, is 0 in float16). Hyper-parameters are keyword arguments of ``__init__``.
    """

    teachers: int = 1
    """How many teachers :meth:`forward` takes; 0 for a baseline that needs none."""
    logits_suffice: bool = False
    """Whether logits are all that the terms read of the teachers, so that they may come from a cache."""
    semi_supervised: bool = False
    """Whether unlabelled tiles teach: the loop then adds as many of them to a batch as it has labelled ones."""
    critic: nn.Module | None
    """What :meth:`critic_terms` trains with its own optimiser; :meth:`forward` never moves it."""
    weights: dict[str, float]
    """λ of every term that :meth:`forward` returns, under the same names: the loop's loss is Σ weight · term."""
    notes: list[str]
    """Lines that a person should read once; the loop shows those it has not shown."""

    def __init__(self, **weights: float) -> None:
        super().__init__()
        self.critic = None
        self.weights = {term: weight for term, weight in weights.items() if weight}
        self.notes = []

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make what depends on the networks' channels (adapters, critics) from one example output each; nothing the second time.

        The loop calls it before it builds optimisers or loads a saved state; the first call of the method does so otherwise.
        """

    def schedule(self, progress: float) -> None:
        """Note that the next step lies at ``progress`` in [0, 1] of the run: terms that fade in or out do so inside :meth:`forward`."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch that the student sees; teachers always see ``batch``, and the next call of the method gets ``batch`` too."""
        return batch

    @abstractmethod
    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return the terms named in ``weights``, unweighted: each a finite scalar, 0 where no pixel takes part."""

    def critic_terms(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return the terms of the critic's own loss (their sum), on outputs that are detached here; empty without a critic."""
        return {}

    def student_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that train with the student (adapters): all but the critic's."""
        critics = {id(parameter) for parameter in self.critic.parameters()} if self.critic is not None else set()
        return (parameter for parameter in self.parameters() if id(parameter) not in critics)

    def __call__(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> Any:
        """Return :meth:`forward`'s terms for full-precision outputs and detached teachers."""
        self.setup(student, *teachers)
        with full_precision(student):
            return super().__call__(batch, promoted(student), *(detached(teacher) for teacher in teachers))


class CrossEntropy(Method):
    """The student alone (``ce``): the baseline that every comparison carries, since the loop adds the supervised terms to any method."""

    teachers = 0
    logits_suffice = True

    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return no term."""
        return {}


def full_precision(outputs: Segmentation) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on the device of ``outputs``."""
    return torch.autocast(outputs.logits.device.type, enabled=False)


def promoted(outputs: Segmentation) -> Segmentation:
    """Return ``outputs`` with half-precision maps as float32; float32 and float64 stay what they are."""
    return _each(outputs, lambda maps: maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps)


def detached(outputs: Segmentation) -> Segmentation:
    """Return ``outputs`` promoted and cut from their graph."""
    return _each(promoted(outputs), Tensor.detach)


def _each(outputs: Segmentation, change: Callable[[Tensor], Tensor]) -> Segmentation:
    aux = None if outputs.aux is None else change(outputs.aux)
    return Segmentation(change(outputs.logits), change(outputs.features), tuple(change(stage) for stage in outputs.stages), aux)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, D, h, w) maps to ``size`` (height, width) bilinearly on pixel areas (``align_corners=False``)."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def size_of(maps: Tensor) -> tuple[int, int]:
    """Return (height, width) of (…, h, w) maps."""
    return maps.shape[-2], maps.shape[-1]


def nearest_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, H, W) labels or flags of any dtype to ``size``: each cell takes the pixel under its centre."""
    (height, width), (rows, cols) = size_of(maps), size
    row = ((torch.arange(rows, device=maps.device) + 0.5) * (height / rows)).long()
    col = ((torch.arange(cols, device=maps.device) + 0.5) * (width / cols)).long()
    return maps[:, row[:, None], col]


def labels_at(batch: Batch, size: tuple[int, int]) -> Tensor:
    """Return the (B, h, w) label at feature ``size``, IGNORE where the pixel is nodata or unlabelled: those take no part in any term."""
    return nearest_pixels(batch.label, size).masked_fill(~nearest_pixels(batch.valid, size), IGNORE)


def cover(maps: Tensor, part: Tensor) -> Tensor:
    """Return (B, D, h, w) ``maps`` with 0 where ``part`` (B, h, w) is False; neither value nor gradient passes there, NaN included."""
    return kept(maps, part[:, None])


def kept(values: Tensor, part: Tensor) -> Tensor:
    """Return ``values`` with 0 where ``part`` (broadcast against them) is False; where it is True throughout, without a copy."""
    return values if part.all() else torch.where(part, values, 0)  # masked_fill takes thrice as long, and leaves channels-last order


def masked_mean(values: Tensor, part: Tensor) -> Tensor:
    """Return the mean of ``values`` over the places where ``part`` (same shape) is True; 0 without any."""
    return kept(values, part).sum() / part.sum().clamp(min=1)


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Return ``vectors`` scaled to length 1 along ``dim``; one without direction becomes 0 and takes no gradient.

    ``F.normalize`` instead multiplies the gradient of a zero vector (a dead cell, a head that starts at 0) by 1/eps. A sum of squares is
    several times as fast on CPU as ``torch.linalg.vector_norm`` along any dimension but the last.
    """
    return vectors * inverse_length(vectors.square().sum(dim, keepdim=True))


def inverse_length(square: Tensor) -> Tensor:
    """Return 1 / length for the ``square`` of lengths; 0, without gradient, where a vector has no direction."""
    dead = square < DEAD**2
    return square.masked_fill(dead, 1).rsqrt().masked_fill(dead, 0)


def gram_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖AᵀA − BᵀB‖²_F of each image for (B, D, P) columns and (B, D', P) columns, without building a P × P matrix.

    ‖AᵀA‖²_F = ‖AAᵀ‖²_F and ⟨AᵀA, BᵀB⟩ = ‖ABᵀ‖²_F, so the cost is D² P and the memory D². The three numbers cancel where A ≈ B:
    they are summed in float64 (which Metal does not have) and the result is clamped at 0.
    """
    wide = a.dtype if a.device.type == "mps" else torch.float64
    own_a, own_b, cross = (
        torch.einsum("bdp,bep->bde", first, second).to(wide).square().sum((1, 2)) for first, second in ((a, a), (b, b), (a, b))
    )
    return (own_a + own_b - 2 * cross).clamp(min=0).to(a.dtype)


def affinity_distance(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """Return the mean of (cos(a_i, a_j) − cos(b_i, b_j))² over pairs i, j of the columns in ``part``, then over images that have some.

    Columns are (B, D, P) and (B, D', P), ``part`` is (B, P). The result does not see a gain of a column or a rotation of its channels.
    """
    unit_a, unit_b = (unit(kept(columns, part[:, None]), 1) for columns in (a, b))
    count = part.sum(1)
    return masked_mean(gram_distance(unit_a, unit_b) / count.clamp(min=1) ** 2, count > 0)


def pearson_distance(a: Tensor, b: Tensor, part: Tensor, dim: int) -> Tensor:
    """Return 1 − ρ of ``a`` and ``b`` along ``dim`` over the places where ``part`` (broadcast against them) is True.

    It is ½‖â − b̂‖² of the centred unit vectors: exactly 0 for equal inputs, also where both are constant and ρ is undefined.
    """
    count = part.expand_as(a).sum(dim, keepdim=True).clamp(min=1)

    def standard(values: Tensor) -> Tensor:
        values = kept(values, part)
        return unit(torch.addcmul(values, values.sum(dim, keepdim=True) / count, part.to(values.dtype), value=-1), dim)

    return (standard(a) - standard(b)).square().sum(dim) / 2


def adapter(student: Tensor, teacher: Tensor) -> nn.Module:
    """Return what brings ``student`` maps to the channels of ``teacher``: a 1 × 1 convolution, or nothing where they agree."""
    if student.shape[1] == teacher.shape[1]:
        return nn.Identity()
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    return nn.Conv2d(student.shape[1], teacher.shape[1], 1, bias=False, device=student.device, dtype=dtype)
