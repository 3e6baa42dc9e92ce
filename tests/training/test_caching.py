"""A teacher's logits out of a cache are those of the teacher, borders included."""

import pytest
import torch

from rsdistill.commands.distill import distill
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.data import augment
from rsdistill.data.dataset import BatchSource, Composition, normalise
from rsdistill.errors import ConfigError
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.models.checkpoints import load_model
from rsdistill.reporting import SILENT
from rsdistill.training.caching import ask, cached
from rsdistill.training.teachers import load_teachers

QUICK = {"batch": 4, "threads": 1, "steps": 3, "validate_every": 3}


@pytest.fixture(scope="module")
def teacher(tiles, tmp_path_factory):
    """Return a small GINet, which needs context."""
    out = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    train_teacher(tiles=tiles, out=out, encoder="mobilenetv4_conv_small_035", set={"dim": 8}, **QUICK)
    return out


def test_cached_logits_are_the_teachers_up_to_half_precision_also_when_turned(tiles, teacher, tmp_path):
    tile_set = load_tile_set(tiles)
    (asked,) = load_teachers([teacher], 1, tile_set)
    kept = cached(asked, tile_set, tmp_path, "mark", torch.device("cpu"), SILENT)
    mean, std = torch.tensor(tile_set.card.mean), torch.tensor(tile_set.card.std)
    batch = normalise(BatchSource(tile_set, Composition(4, 2, 0, True), seed=0)[0], mean, std, torch.device("cpu"))
    with torch.inference_mode():
        direct = asked(batch)
    elements = torch.arange(8)
    here, there = (augment.turn_segmentation(answer, elements).logits for answer in (kept(batch), direct))
    torch.testing.assert_close(here, there, atol=4e-3, rtol=2e-3)
    rim = torch.ones_like(there, dtype=torch.bool)
    rim[..., 1:-1, 1:-1] = False
    torch.testing.assert_close(here[rim], there[rim], atol=4e-3, rtol=2e-3)


def test_the_second_run_asks_no_teacher(tiles, teacher, tmp_path, monkeypatch):
    options = {
        "tiles": tiles,
        "work": tmp_path,
        "teacher": (teacher,),
        "student": "tiny",
        "cache_teacher": True,
        "overwrite": True,
        **QUICK,
    }
    first = distill(**options)
    (kept,) = (tmp_path / "cache").iterdir()
    written = kept.stat().st_mtime_ns
    network = type(load_model(teacher)[0])
    monkeypatch.setattr(network, "forward", lambda *_: pytest.fail("the teacher was asked"))
    again = distill(**options)
    assert kept.stat().st_mtime_ns == written
    assert again.data["miou"] == first.data["miou"]


def test_a_method_that_reads_features_is_refused(tiles, teacher, tmp_path):
    with pytest.raises(ConfigError, match="nfd reads features"):
        distill(tiles=tiles, work=tmp_path, teacher=(teacher,), method="nfd", cache_teacher=True, **QUICK)
    distill(
        tiles=tiles, work=tmp_path, teacher=(teacher,), method="cwd", set={"cwd.features": 0}, cache_teacher=True, student="tiny", **QUICK
    )


def test_a_teacher_asked_eight_ways_answers_the_same_for_every_turn(tiles, teacher):
    tile_set = load_tile_set(tiles)
    (asked,) = load_teachers([teacher], 1, tile_set)
    mean, std = torch.tensor(tile_set.card.mean), torch.tensor(tile_set.card.std)
    batch = normalise(BatchSource(tile_set, Composition(4, 1, 0, True), seed=0)[0], mean, std, torch.device("cpu"))
    element = torch.tensor([1, 3, 5, 6])
    turned = augment.apply(batch, augment.Draw(element, torch.zeros(4), torch.ones(4)))
    with torch.inference_mode():
        straight, other, once = ask(asked, batch, 8), ask(asked, turned, 8), ask(asked, batch, 1)
    torch.testing.assert_close(other, augment.turn(straight, element), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(straight.exp().sum(1), torch.ones_like(straight[:, 0]))
    assert not torch.allclose(straight, once.log_softmax(1), atol=1e-3)


def test_views_need_the_cache(tiles, teacher, tmp_path):
    with pytest.raises(ConfigError, match="asked once a tile"):
        distill(tiles=tiles, work=tmp_path, teacher=(teacher,), teacher_views=8, **QUICK)
