"""Networks by their names through the commands: every teacher trains and maps, a student may read context, and scales have to agree."""

import pytest

from rsdistill.commands.distill import distill
from rsdistill.commands.evaluate import evaluate
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.errors import CheckpointError, ConfigError
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.models import load_model, read_card, save_model
from rsdistill.models.ginet import GINet
from rsdistill.training.teachers import load_teachers

QUICK = {"batch": 4, "threads": 1, "steps": 2, "validate_every": 2, "validation": "tile"}
TEACHERS = {
    "ginet": {"encoder": "test_resnet", "set": {"dim": 8}},
    "local": {"encoder": "test_resnet", "set": {"dim": 8}},
    "deeplabv3plus": {"encoder": "mobilenet_v2"},
    "fpn": {"encoder": "mobilenet_v2"},
    "segformer": {"encoder": "mit_b0"},
    "pspnet": {"encoder": "test_resnet"},
}


@pytest.fixture(scope="module")
def teacher(tiles, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    train_teacher(tiles=tiles, out=out, **TEACHERS["ginet"], **QUICK)
    return out


@pytest.mark.parametrize("arch", TEACHERS)
def test_every_teacher_trains_and_is_measured(tiles, tmp_path, arch):
    out = tmp_path / "teacher.safetensors"
    trained = train_teacher(tiles=tiles, out=out, arch=arch, **TEACHERS[arch], **QUICK)
    network, card = load_model(out)
    assert card.arch == arch
    assert network.needs_context == (arch == "ginet")
    assert trained.data["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    measured = evaluate(model=out, tiles=tiles, out=tmp_path / "measured")
    assert 0 <= measured.data["miou"] <= 1


def test_a_student_may_read_context(tiles, teacher, tmp_path):
    out = tmp_path / "student.safetensors"
    distill(tiles=tiles, work=tmp_path, out=out, teacher=(teacher,), student="ginet-lite", **QUICK)
    network, card = load_model(out)
    assert card.arch == "ginet-lite"
    assert isinstance(network, GINet)
    assert card.canvas_margin is not None
    measured = evaluate(model=out, tiles=tiles, out=tmp_path / "measured")
    assert 0 <= measured.data["miou"] <= 1


def test_a_plain_student_may_doubt_what_the_teacher_read_outside_the_tile(tiles, teacher, tmp_path):
    """1 - JS(fused, aux): the auxiliary logits come with the kept canvases too."""
    trusting, doubting = (
        distill(
            tiles=tiles, work=tmp_path, out=tmp_path / f"{js}.safetensors", teacher=(teacher,), student="tiny", set={"kd.js": js}, **QUICK
        )
        for js in (False, True)
    )
    assert (tmp_path / "True.safetensors").read_bytes() != (tmp_path / "False.safetensors").read_bytes()
    assert trusting.data["steps"] == doubting.data["steps"] == 2


def test_a_thumbnail_is_trained_and_told(tiles, tmp_path):
    out = tmp_path / "teacher.safetensors"
    train_teacher(
        tiles=tiles, out=out, encoder="test_resnet", set={"dim": 8, "thumbnail_from": 100, "thumbnail_drop": 0.25}, **QUICK | {"steps": 6}
    )
    assert read_card(out).arch_args["thumbnail_from"] == 100
    network, _ = load_model(out)
    assert network.thumbnail.added.weight.any(), "it has begun to learn"
    assert 0 <= evaluate(model=out, tiles=tiles, out=tmp_path / "measured").data["miou"] <= 1


def test_context_of_another_scale_is_refused(tiles, teacher, tmp_path):
    with pytest.raises(ConfigError, match="context_ratio 16") as caught:
        train_teacher(tiles=tiles, out=tmp_path / "t.safetensors", encoder="test_resnet", set={"context_ratio": 16}, **QUICK)
    assert "give 8" in caught.value.hint
    network, card = load_model(teacher)
    network.args = network.args.model_copy(update={"context_ratio": 16})
    save_model(tmp_path / "other.safetensors", network, card)
    with pytest.raises(CheckpointError, match="has context_ratio 16"):
        load_teachers([tmp_path / "other.safetensors"], 1, load_tile_set(tiles))
