"""Critics: networks that learn to tell a teacher's maps from a student's, and the losses that play them against each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SMALLEST, LARGEST = 64, 256
"""Sides of the maps that the holistic critic looks at: its last convolution needs 64, its attention compares (side / 8)² cells in pairs."""


@contextmanager
def held(critic: nn.Module | None) -> Iterator[nn.Module]:
    """Lend ``critic`` to the student's loss: it passes gradients on, but neither weights nor buffers (spectral norm's vectors) move."""
    if critic is None:
        raise RuntimeError("the critic is made by setup(), which comes first")
    training = critic.training
    critic.requires_grad_(False).eval()
    try:
        yield critic
    finally:
        critic.requires_grad_(True).train(training)


class SelfAttention(nn.Module):
    """Every cell looks at every other: x + γ · attention(x), γ from 0 (SAGAN, arXiv 1805.08318)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, D, h, w) maps for (B, D, h, w) maps."""
        weights = (self.query(maps).flatten(2).mT @ self.key(maps).flatten(2)).softmax(2)
        return maps + self.gamma * (self.value(maps).flatten(2) @ weights.mT).view_as(maps)


class HolisticCritic(nn.Sequential):
    """A SAGAN critic of (B, K, h, w) logits, one score a map: (B,).

    Input normalisation, four spectrally normalised 4 × 4 convolutions of stride 2 (64, 128, 256, 512 channels), self-attention after
    the last two, and a 4 × 4 convolution, averaged where the map is larger than 64 × 64.
    """

    def __init__(self, classes: int) -> None:
        def block(channels: int, wider: int) -> nn.Sequential:
            return nn.Sequential(spectral_norm(nn.Conv2d(channels, wider, 4, stride=2, padding=1)), nn.LeakyReLU(0.1))

        super().__init__(
            nn.BatchNorm2d(classes, track_running_stats=False),  # statistics of the batch only: none to drift between the two steps
            block(classes, 64),
            block(64, 128),
            block(128, 256),
            SelfAttention(256),
            block(256, 512),
            SelfAttention(512),
            nn.Conv2d(512, 1, 4),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the score of each map; sides outside 64…256 are resized to the nearest of the two."""
        height, width = (min(max(side, SMALLEST), LARGEST) for side in maps.shape[-2:])
        if maps.shape[-2:] != (height, width):
            maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        for layer in self:
            maps = layer(maps)
        return maps.mean((1, 2, 3))


class AffinityCritic(nn.Sequential):
    """A critic of (B, 8K, H, W) affinity maps: five 4 × 4 convolutions of stride 2, no normalisation, (B, 1, H/32, W/32) logits."""

    def __init__(self, channels: int) -> None:
        widths = (channels, 64, 128, 256, 512)
        blocks = [nn.Sequential(nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2)) for narrow, wide in pairwise(widths)]
        super().__init__(*blocks, nn.Conv2d(512, 1, 4, stride=2, padding=1))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean max(0, 1 − real) + mean max(0, 1 + fake) of two critics' scores: 2 where both are 0."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wasserstein_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean fake − mean real."""
    return fake.mean() - real.mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return mean (‖∇ critic(x)‖ − 1)² at one random point x on each line from a fake map to a real one (WGAN-GP, arXiv 1704.00028)."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = (share * real + (1 - share) * fake).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def bce(scores: Tensor, answer: float) -> Tensor:
    """Return the binary cross-entropy of critic logits against one answer for all: ln 2 where they are 0."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, answer))
