"""What training costs beside its networks: a step of every method, a training item, an affinity; ratios of medians, taken in turns."""

import json
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import rasterio
import torch
from lightning_fabric import Fabric
from rasterio.windows import Window as RasterWindow

from rsdistill.commands.distill import DistillConfig
from rsdistill.commands.tile import tile
from rsdistill.data.dataset import TileReader
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.methods import METHODS, load_method
from rsdistill.methods.base import affinity_distance, unit
from rsdistill.models import ModelCard, build_network, save_model
from rsdistill.reporting import SILENT
from rsdistill.training import run
from rsdistill.training.caching import cached
from rsdistill.training.logs import RunLog
from rsdistill.training.loop import Fit
from rsdistill.training.objectives import DistillObjective
from rsdistill.training.teachers import load_teachers

pytestmark = pytest.mark.benchmark
ROUNDS = 15
CRITICS = ("skd", "mgsad")
APART = ("ce", "mgd")
"""``ce`` is the measure; ``mgd`` has another number of tiles in a step."""


def medians(calls, rounds=ROUNDS):
    """Return the median seconds of each call; they take turns, so that a busy machine is busy for all of them."""
    seconds = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = perf_counter()
            call()
            if round_:  # the first round warms up
                seconds[name].append(perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


@pytest.fixture(scope="module")
def tile_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled")
    drawn = write_land_cover(folder, size=2048, seed=3)
    tile(scenes=[drawn.scene], labels=[drawn.labels], classes=drawn.classes, work=folder / "work", tile=512)
    return load_tile_set(folder / "work" / "tiles")


@pytest.fixture(scope="module")
def teacher(tile_set, tmp_path_factory):
    """Return a GINet-style teacher that nobody trained: what a step costs does not depend on its weights."""
    torch.manual_seed(0)
    card, path = tile_set.card, tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    network = build_network("ginet", {}, len(card.bands), len(tile_set.table))
    kept = ("classes", "bands", "mean", "std", "pixel_size", "context_ratio")
    save_model(path, network, ModelCard(arch="ginet", arch_args={}, **{name: getattr(card, name) for name in kept}))
    return path


def fitted(method, tile_set, teachers, folder, fabric):
    config = DistillConfig.of(tiles=tile_set.folder, method=method, batch=2)
    torch.manual_seed(0)
    rule = load_method(method, {})
    network = build_network("small", {}, len(tile_set.card.bands), len(tile_set.table))
    objective = DistillObjective(network, run.supervised(config, tile_set), rule, teachers[: rule.teachers], augmentation=0.2, seed=0)
    batches = run.source(config, tile_set, fabric, with_context=any(one.needs_context for one in teachers[: rule.teachers]))
    return Fit(objective, batches, config, 1000, lambda _: {}, folder / "state", RunLog(folder / "log.csv", 1000), SILENT, fabric)


def test_a_step_of_each_method(tile_set, teacher, tmp_path, capsys):
    """Goals: ≤ 1.15 × (``ce`` step + teacher's forward pass), critics ≤ 2.5 ×; with the teacher's logits cached ≤ 1.10 × ``ce``."""
    fabric = Fabric(accelerator="cpu", devices=1)
    asked = load_teachers([teacher], 1, tile_set)
    kept = (cached(asked[0], tile_set, tmp_path, "bench", fabric.device, SILENT),)
    methods = [name for name in METHODS if name not in APART]
    fits = {name: fitted(name, tile_set, asked, tmp_path, fabric) for name in ("ce", *methods)}
    from_cache = [name for name in methods if fits[name].objective.method.logits_suffice]
    fits |= {f"{name}, cached": fitted(name, tile_set, kept, tmp_path, fabric) for name in from_cache}

    def step(fit):
        raws = [fit.source[0]]
        return lambda: fit._train_step(raws)

    batch = next(fits["kd"].batches(0))
    measure = {"ce": step(fits.pop("ce")), "teacher": torch.no_grad()(lambda: asked[0](batch))}
    rows = []
    for name, fit in fits.items():  # each beside its own measure, since what ran before decides what is in the processor's caches
        seconds = medians(measure | {"step": step(fit)})
        goal = 2.5 if name.startswith(CRITICS) else 1.10 if "cached" in name else 1.15
        whole = seconds["ce"] + (0 if "cached" in name else seconds["teacher"])
        rows.append({"step": name, "ratio": round(seconds["step"] / whole, 3), "goal": goal, "ms": round(1000 * seconds["step"])})
    with capsys.disabled():
        print(f"\nce {1000 * seconds['ce']:.0f} ms, teacher {1000 * seconds['teacher']:.0f} ms")
        for row in sorted(rows, key=lambda row: row["ratio"]):
            print(json.dumps(row))
    assert len(rows) == len(methods) + len(from_cache)


def test_a_training_item(tile_set, capsys):
    """T1: ≤ 1.5 × a direct windowed read of the image, ≤ 1.75 × with its label; tiles one after the other, so that all are decoded."""
    reader, items = TileReader(tile_set), tile_set.of_split("train")
    entry = tile_set.card.scenes[items[0].scene]
    there = [RasterWindow(item.window.col, item.window.row, item.window.width, item.window.height) for item in items]
    paths = [Path(tile_set.path(entry.path)), Path(tile_set.path(entry.label))]
    with rasterio.Env(GDAL_CACHEMAX=1 << 20), rasterio.open(paths[0]) as image, rasterio.open(paths[1]) as label:
        calls = {
            "image": lambda: [image.read(window=window) for window in there],
            "image and label": lambda: [(image.read(window=window), label.read(1, window=window)) for window in there],
            "item without label": lambda: [reader.read(item._replace(labelled=False)) for item in items],
            "item": lambda: [reader.read(item) for item in items],
        }
        seconds = medians(calls, 21)
    found = {"image": seconds["item without label"] / seconds["image"], "image and label": seconds["item"] / seconds["image and label"]}
    with capsys.disabled():
        print("\n" + json.dumps(found))
    assert found.keys() == {"image", "image and label"}


def test_an_affinity_of_a_map_of_64(capsys):
    """D2: ≥ 8 × faster than the P × P matrices, equal to 1e-6, in memory that does not grow with P²."""
    torch.manual_seed(0)
    student, taught = (torch.randn(2, 128, 64 * 64) for _ in range(2))
    part = torch.ones(2, 64 * 64, dtype=torch.bool)

    def naive():
        a, b = unit(student, 1), unit(taught, 1)
        return (a.transpose(1, 2) @ a - b.transpose(1, 2) @ b).square().mean()

    seconds = medians({"naive": naive, "gram": lambda: affinity_distance(student, taught, part)})
    difference = abs(float(naive()) - float(affinity_distance(student, taught, part)))
    with capsys.disabled():
        print("\n" + json.dumps({"times faster": seconds["naive"] / seconds["gram"], "difference": difference}))
    assert difference < 1e-6
