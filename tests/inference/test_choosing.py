"""What runs a network: the fastest that agrees, told why, kept; what disagrees or is not there is refused, or left out with the reason."""

import time

import numpy as np
import pytest

from rsdistill.errors import ConfigError, MissingExtraError
from rsdistill.geo.windows import Window, plan
from rsdistill.inference.choosing import Choice, Trial, candidates, choice_in, explained, fastest, samples, settled, try_out
from rsdistill.inference.engine import Job
from rsdistill.inference.loading import Model
from rsdistill.inference.settings import MapConfig
from rsdistill.models import ModelCard

TORCH, BF16, ONNX, OPENVINO = Choice("torch"), Choice("torch", "bf16"), Choice("onnx"), Choice("openvino", "bf16")


@pytest.fixture
def model(tmp_path):
    class Network:
        needs_context = False

    card = ModelCard(arch="tiny", classes=[{"id": 1, "name": "a"}], bands=(1,), mean=(0.0,), std=(1.0,))
    return Model(tmp_path / "m.safetensors", card, 1, network=Network())


class Heard:
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture
def windows(array_scene):
    codes = np.random.default_rng(0).integers(0, 4, (1, 200, 300)).astype(np.uint8)
    scene = array_scene(codes, np.ones((200, 300), bool))
    return samples(scene, [1], Job.of(plan(200, 300, 32, 4), scene.grid.window, "core"))


def slow(oracle, seconds, wrong=0.0):
    """An oracle that takes its time, and is wrong about a share of the pixels."""

    class Slow(oracle):
        def labels(self, images, valid, windows):
            time.sleep(seconds)
            found = super().labels(images, valid, windows)
            found[..., : round(wrong * found.shape[-1])] = 9
            return found

    return Slow(4)


def test_four_windows_around_the_middle_are_sampled(windows):
    assert len(windows) == 4
    rows, cols = {one.window.row for one in windows}, {one.window.col for one in windows}
    assert len(rows) == len(cols) == 2
    assert min(rows) < 100 < max(rows)
    assert min(cols) < 150 < max(cols)


def test_windows_without_data_are_no_samples(array_scene):
    valid, job = np.zeros((640, 640), bool), Job.of(plan(640, 640, 32, 4), Window(0, 0, 640, 640), "core")
    scene = array_scene(np.ones((1, 640, 640), np.uint8), valid)
    assert samples(scene, [1], job) == []
    valid[:300, :300] = True
    found = samples(scene, [1], job)
    assert len(found) == 4
    assert all(one.valid.all() for one in found)


def test_a_scene_of_one_window_is_its_own_sample(array_scene):
    scene = array_scene(np.ones((1, 5, 7), np.uint8), np.ones((5, 7), bool))
    (one,) = samples(scene, [1], Job.of(plan(5, 7, 32, 0, 8), scene.grid.window, "core"))
    assert one.image.shape == (1, 8, 8)


def test_the_fastest_that_agrees_is_taken(oracle, windows):
    def missing():
        raise MissingExtraError("openvino is not installed")

    runs = [
        (TORCH, lambda: slow(oracle, 0.02)),
        (BF16, lambda: slow(oracle, 0.0, wrong=0.1)),
        (ONNX, lambda: slow(oracle, 0.004, wrong=0.0)),
        (OPENVINO, missing),
    ]
    trials = try_out(runs, windows)
    assert [trial.agreement for trial in trials[:3]] == [1, pytest.approx(1 - 3 / 31), 1]
    best = fastest(trials)
    assert best.choice == ONNX
    said = explained(trials, best)
    assert "backend onnx float32" in said
    assert "90.32 % of labels equal" in said
    assert "openvino bf16: openvino is not installed" in said


def test_a_little_faster_is_not_worth_another_rounding():
    trials = [Trial(TORCH, 1.0, 1.0), Trial(ONNX, 0.95, 1.0)]
    assert fastest(trials).choice == TORCH
    assert fastest([*trials, Trial(OPENVINO, 0.5, 0.989)]).choice == TORCH
    assert fastest([*trials, Trial(OPENVINO, 0.5, 0.991)]).choice == OPENVINO


def test_what_is_named_is_used_if_it_agrees(oracle, windows, model):
    def settle(config, wrong=0.0, heard=None):
        def make(choice, *, compiled):
            return slow(oracle, 0, wrong if choice != TORCH or compiled else 0)

        return settled(model, MapConfig.of(**config), lambda: windows, make, on_processor=True, progress=heard or Heard())

    def refused():
        raise AssertionError("float32 needs no check")

    assert settled(model, MapConfig(), refused, refused, on_processor=True, progress=Heard()) == TORCH
    heard = Heard()
    assert settle({"precision": "bf16"}, heard=heard) == BF16
    assert "100.00 % of labels equal, on 4 windows" in heard.messages[0]
    for config in ({"precision": "bf16"}, {"backend": "onnx"}, {"compile": True}):
        with pytest.raises(ConfigError, match=r"gives 96\.77 % of the pixels"):
            settle(config, wrong=0.03)
    assert settle({"backend": "auto"}, wrong=0.03) == TORCH
    with pytest.raises(ConfigError, match="--compile is for --backend torch"):
        settle({"backend": "auto", "compile": True})


def test_candidates_suit_the_model_and_the_device(model):
    assert TORCH not in candidates(model, None, on_processor=True)
    assert set(candidates(model, "float32", on_processor=True)) == {ONNX, Choice("openvino")}
    assert set(candidates(model, None, on_processor=False)) == {BF16, Choice("torch", "fp16")}
    model.network.needs_context = True
    assert candidates(model, None, on_processor=True) == [BF16]
    model.network = None
    assert model.reference == ONNX
    assert set(candidates(model, None, on_processor=True)) == {Choice("openvino"), OPENVINO}


def test_the_choice_is_found_in_what_a_run_left():
    assert choice_in({"options": {"backend": "openvino", "precision": "bf16"}}) == OPENVINO
    for mark in (None, {}, {"options": {"backend": "auto", "precision": None}}, {"options": {"backend": "vim", "precision": "bf16"}}):
        assert choice_in(mark) is None
