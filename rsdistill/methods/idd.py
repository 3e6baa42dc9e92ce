"""Inter-class distance distillation (idd): how far apart the classes lie, and where in the scene a pixel lies.

    v_k = mean of f_p over the pixels of class k       e_ij = ‖v_i − v_j‖, divided by the tile's mean distance
    L_distance = mean over images of mean over pairs i < j present of ½ (e^T_ij − e^S_ij)²
    L_position = mean over valid p of ½ ‖g(A f^S_p) − g(f^T_p)‖²

f features (B, D, h, w), the student's resized to the teacher's. Absent classes have no pairs, images without a pair
leave the mean. g is one 3 × 3 replicate-padded convolution, the method's critic: it learns to read the (row, column) of
each pixel, in [−1, 1] over the whole scene, from the frozen teacher, ``mean over p of ½ ‖g(f^T_p) − (row, col)_p‖²``. A
is a 1 × 1 convolution where the channels differ.

Zhang, Zhou, Tu: Distilling Inter-Class Distance for Semantic Segmentation, IJCAI 2022, 10.24963/ijcai.2022/235.

Distance: as in third-party code; without ``normalise`` it scales with √D and with the networks' gains. Position is
derived, written from the abstract: it is fitted beside the student instead of before it, so L_position fades in over
the first tenth of the run; one g serves both networks; coordinates are the scene's, because a tile's own rows and
columns mean nothing in overhead images.
Choose it when: classes are confused with each other rather than with noise, and tiles hold several of them.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Temperature, Weight, adapter, cover, detached, full_precision, labels_at, masked_mean, size_of, upsample
from rsdistill.methods.critics import held
from rsdistill.methods.ifvd import class_centres, one_hot
from rsdistill.methods.kd import Relational

FADE_IN = 0.1
"""Share of the run over which the position term grows to its weight."""


def class_distances(features: Tensor, members: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """Return e and whether both classes are present, (B, pairs) each, for (B, D, h, w) features and (B, K, h, w) members."""
    first, second = torch.triu_indices(members.shape[1], members.shape[1], 1, device=features.device)
    centres, present = class_centres(cover(features, members.any(1)), members), members.any(3).any(2)
    pairs = present[:, first] & present[:, second]
    edges = torch.linalg.vector_norm(centres[:, first] - centres[:, second], dim=2).masked_fill(~pairs, 0)
    if normalise:
        mean = edges.sum(1, keepdim=True) / pairs.sum(1, keepdim=True).clamp(min=1)
        edges = edges / mean.masked_fill(mean == 0, 1)
    return edges, pairs


def distance_loss(student: Tensor, teacher: Tensor, members: Tensor, normalise: bool) -> Tensor:
    """Return L_distance for (B, D', h, w) and (B, D, h, w) features."""
    edges, pairs = class_distances(student, members, normalise)
    wanted, _ = class_distances(teacher, members, normalise)
    count = pairs.sum(1)
    return masked_mean((edges - wanted).square().sum(1) / 2 / count.clamp(min=1), count > 0)


def scene_ramps(batch: Batch, size: tuple[int, int]) -> Tensor:
    """Return (B, 2, h, w): row and column of each feature cell's centre in [−1, 1] of the scene (of the tile where its box is unknown)."""
    image = batch.image
    whole = image.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(image), 4)
    box = (whole if batch.box_in_scene is None else batch.box_in_scene).to(image)
    rows, cols = ((torch.arange(cells, device=image.device, dtype=image.dtype) + 0.5) / cells for cells in size)
    row = box[:, 0, None] + (box[:, 2] - box[:, 0])[:, None] * rows
    col = box[:, 1, None] + (box[:, 3] - box[:, 1])[:, None] * cols
    return 2 * torch.stack([row[:, :, None].expand(-1, *size), col[:, None, :].expand(-1, *size)], 1) - 1


class IDD(Relational):
    """Distances between classes, and position.

    Args:
        distance: λ of the distances between class centres.
        position: λ of the position in the scene.
        normalise: measure distances in units of the tile's mean distance.
        kd: λ of plain KD beside them.
        kd_tau: temperature of that KD.
    """

    def __init__(
        self, *, distance: Weight = 1.0, position: Weight = 0.1, normalise: bool = True, kd: Weight = 1.0, kd_tau: Temperature = 1.0
    ) -> None:
        super().__init__(kd, kd_tau, distance=distance, position=position)
        self.normalise = normalise
        self.fade = 1.0
        self.adapter: nn.Module = nn.Identity()

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make the position decoder and the 1 × 1 convolution before it."""
        if "position" in self.weights and self.critic is None:
            features = teachers[0].features
            dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
            self.adapter = adapter(student.features, features)
            self.critic = nn.Conv2d(features.shape[1], 2, 3, padding=1, padding_mode="replicate", device=features.device, dtype=dtype)

    def schedule(self, progress: float) -> None:
        """Let the position term grow over the first tenth of the run."""
        self.fade = min(1.0, progress / FADE_IN)

    def distance(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_distance."""
        size = size_of(teacher.features)
        members = one_hot(labels_at(batch, size), teacher.logits.shape[1])
        return distance_loss(upsample(student.features, size), teacher.features, members, self.normalise)

    def position(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_position, faded in."""
        size = size_of(teacher.features)
        part = labels_at(batch, size) != IGNORE
        with held(self.critic) as critic:
            decoder = cast("nn.Conv2d", critic)
            kernel: Tensor = decoder.weight
            if isinstance(self.adapter, nn.Conv2d):  # A and then g is one convolution, of fewer channels
                kernel = torch.einsum("odrc,de->oerc", kernel, self.adapter.weight[:, :, 0, 0])
            own = F.conv2d(F.pad(cover(upsample(student.features, size), part), (1, 1, 1, 1), mode="replicate"), kernel, decoder.bias)
            gap = own - decoder(cover(teacher.features, part))
        return self.fade * masked_mean(gap.square().mean(1), part)

    def critic_terms(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return ``position``: how far the decoder reads the teacher's pixels from where they lie."""
        if self.critic is None:
            return {}
        teacher = detached(teachers[0])
        size = size_of(teacher.features)
        part = labels_at(batch, size) != IGNORE
        with full_precision(teacher):
            gap = self.critic(cover(teacher.features, part)) - scene_ramps(batch, size)
        return {"position": masked_mean(gap.square().mean(1), part)}
