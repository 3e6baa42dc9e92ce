"""A task that only far context decides: GINet solves it, the local network stays at chance, and a lie about the context is believed."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.batches import IGNORE, Context
from rsdistill.geo.context import area_mean
from rsdistill.geo.synthetic import SIDES, far_context
from rsdistill.models import Network, build_network

RATIO, TILE, SIZE = 8, 64, 1024


class Scene(NamedTuple):
    image: Tensor
    context: Tensor
    label: Tensor


class Sample(NamedTuple):
    image: Tensor
    label: Tensor
    context: Context


def draw(seed: int) -> Scene:
    drawn = far_context(SIZE, SIZE, seed)
    pixels = (drawn.image.astype(np.float32) - 128) / 32
    context, _ = area_mean(pixels, drawn.valid, RATIO)
    return Scene(torch.from_numpy(pixels), torch.from_numpy(context), torch.from_numpy(SIDES.to_index(drawn.label)).long())


def sample(scenes: list[Scene], tiles: int, rng: np.random.Generator) -> Sample:
    """Cut ``tiles`` tiles that have labels out of each scene."""
    images, labels, boxes = [], [], []
    for scene in scenes:
        wanted = len(images) + tiles
        while len(images) < wanted:
            row, col = rng.integers(0, SIZE - TILE + 1, 2)
            label = scene.label[row : row + TILE, col : col + TILE]
            if (label != IGNORE).float().mean() > 0.3:
                images.append(scene.image[:, row : row + TILE, col : col + TILE])
                labels.append(label)
                boxes.append([row / SIZE, col / SIZE, (row + TILE) / SIZE, (col + TILE) / SIZE])
    contexts = torch.stack([scene.context for scene in scenes])
    valid, index = torch.ones_like(contexts[:, 0], dtype=torch.bool), torch.arange(len(scenes)).repeat_interleave(tiles)
    return Sample(torch.stack(images), torch.stack(labels), Context(contexts, valid, torch.tensor(boxes, dtype=torch.float32), index))


def logits(network: Network, seen: Sample) -> Tensor:
    answer = network(seen.image, seen.context if network.needs_context else None)
    return F.interpolate(answer.logits, size=seen.label.shape[-2:], mode="bilinear", align_corners=False)


def accuracy(network: Network, seen: Sample) -> float:
    with torch.no_grad():
        right = logits(network.eval(), seen).argmax(1) == seen.label
    return float(right[seen.label != IGNORE].float().mean())


def trained(arch: str, steps: int, **args: object) -> Network:
    torch.manual_seed(0)
    rng, scenes = np.random.default_rng(0), [draw(seed) for seed in range(4)]
    network = build_network(arch, {"encoder": "test_resnet", "dim": 16, **args}, 3, len(SIDES)).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        seen = sample([scenes[m] for m in rng.choice(4, 2, replace=False)], 8, rng)
        optimiser.zero_grad()
        F.cross_entropy(logits(network, seen), seen.label, ignore_index=IGNORE).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return network


@pytest.fixture(scope="module")
def unseen() -> Sample:
    return sample([draw(seed) for seed in (100, 101)], 16, np.random.default_rng(5))


def test_ginet_reads_the_answer_far_away_and_believes_a_lie(unseen: Sample) -> None:
    network = trained("ginet", 120)
    assert accuracy(network, unseen) >= 0.95
    lie = unseen.context._replace(image=-unseen.context.image)
    assert accuracy(network, unseen._replace(context=lie)) <= 0.05


@pytest.mark.parametrize(("arch", "args"), [("local", {}), ("ginet", {"ggn": "vector", "fusion": False})])
def test_without_context_or_without_its_place_there_is_nothing_but_chance(unseen: Sample, arch: str, args: dict) -> None:
    assert abs(accuracy(trained(arch, 60, **args), unseen) - 0.5) <= 0.1
