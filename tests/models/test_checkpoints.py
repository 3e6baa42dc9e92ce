"""Model files: what a person writes by hand loads, and what does not fit is refused with both sides named."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from rsdistill.errors import CheckpointError, DiskError
from rsdistill.models import build_network, load_model, save_model
from rsdistill.models.card import HEADER_KEY, ModelCard
from rsdistill.models.checkpoints import _check_fit

Make = Callable[..., ModelCard]

CARD: dict[str, Any] = {
    "format_version": 1,
    "arch": "linear",
    "classes": [{"id": 1, "name": "water"}, {"id": 2, "name": "land"}],
    "bands": [1, 2, 3],
    "mean": [100, 100, 100],
    "std": [50, 50, 50],
}
LINEAR = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1), "bias": np.array([0.5, -0.5], np.float32)}


def by_hand(path: Path, tensors: dict[str, Any] | None = None, **change: Any) -> Path:
    """Write a model as a person would: numpy, json and the safetensors library."""
    save_file(LINEAR if tensors is None else tensors, path, metadata={HEADER_KEY: json.dumps(CARD | change)})
    return path


def test_a_linear_model_written_by_hand_loads_and_answers(tmp_path: Path) -> None:
    network, card = load_model(by_hand(tmp_path / "m.safetensors"))
    assert not network.training
    assert (network.stride, network.needs_context) == (1, False)
    assert card.mean == (100.0, 100.0, 100.0)
    image = torch.randn(2, 3, 5, 7)
    answer = network(image)
    expected = np.einsum("kc,bcyx->bkyx", LINEAR["weight"][:, :, 0, 0], image.numpy()) + LINEAR["bias"][:, None, None]
    assert np.allclose(answer.logits.detach().numpy(), expected, atol=1e-5)
    assert torch.equal(answer.features, image)


def test_a_linear_model_is_saved_as_weight_and_bias_and_nothing_else(tmp_path: Path, card: Make) -> None:
    save_model(tmp_path / "m.safetensors", build_network("linear", {}, 3, 2), card())
    header = (tmp_path / "m.safetensors").read_bytes()
    content = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert set(content) == {"__metadata__", "weight", "bias"}
    assert content["weight"]["shape"] == [2, 3, 1, 1]
    assert content["bias"]["shape"] == [2]
    assert set(content["__metadata__"]) == {HEADER_KEY}


def test_half_precision_weights_are_taken_and_computed_in_float32(tmp_path: Path) -> None:
    half = {name: values.astype(np.float16) for name, values in LINEAR.items()}
    network, _ = load_model(by_hand(tmp_path / "m.safetensors", half))
    assert network.weight.dtype == torch.float32
    assert torch.equal(network.bias.detach(), torch.tensor([0.5, -0.5]))


def test_files_of_the_same_model_are_the_same_bytes(tmp_path: Path, card: Make) -> None:
    torch.manual_seed(1)
    network = build_network("tiny", {}, 3, 2)
    for name in ("a", "b"):
        save_model(tmp_path / f"{name}.safetensors", network, card("tiny"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_options_that_were_not_named_are_written_out(tmp_path: Path, card: Make) -> None:
    save_model(tmp_path / "m.safetensors", build_network("small", {"dim": 16}, 3, 2), card("small", arch_args={"dim": 16}))
    network, read = load_model(tmp_path / "m.safetensors")
    assert read.arch_args == {"encoder": "mobilenetv4_conv_small_050", "dim": 16}
    assert network.classifier.in_channels == 16


def test_a_full_disk_leaves_the_older_file_and_nothing_else(tmp_path: Path, card: Make) -> None:
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    path = tmp_path / "m.safetensors"
    save_model(path, build_network("linear", {}, 3, 2), card())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(DiskError, match=r"cannot write .*m\.safetensors"):
            save_model(path, build_network("linear", {}, 3, 2), card())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_network_is_not_saved_under_a_card_of_another(tmp_path: Path, card: Make) -> None:
    with pytest.raises(CheckpointError, match="weight"):
        save_model(tmp_path / "m.safetensors", build_network("linear", {}, 3, 2), card(bands=4))
    network = build_network("linear", {}, 3, 2)
    network.bias.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        save_model(tmp_path / "m.safetensors", network, card())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "change", "message"),
    [
        ({"weight": LINEAR["weight"]}, {}, r"lacks the tensor 'bias' of linear of 3 bands and 2 classes \(1 of 2 are missing\)"),
        (LINEAR | {"more": LINEAR["bias"]}, {}, "holds the tensor 'more' that linear"),
        (LINEAR | {"weight": LINEAR["weight"][:, :2].copy()}, {}, r"'weight' .* is \(2, 2, 1, 1\) float32; .* has \(2, 3, 1, 1\)"),
        (LINEAR | {"bias": np.zeros(3, np.float32)}, {}, r"'bias' .* is \(3,\)"),
        (LINEAR | {"bias": np.zeros(2, np.int32)}, {}, "'bias' .* int32"),
        (LINEAR | {"bias": np.array([1, np.nan], np.float32)}, {}, "'bias' .* not finite"),
        (LINEAR | {"weight": np.full((2, 3, 1, 1), np.inf, np.float32)}, {}, "'weight' .* not finite"),
        (LINEAR, {"arch": "liner"}, "did you mean 'linear'"),
        (LINEAR, {"arch": "os:system"}, "unknown architecture 'os:system'"),
        (LINEAR, {"arch": "small"}, "lacks the tensor"),
        (LINEAR, {"arch_args": {"dim": 4}}, "unknown option 'dim'"),
        (LINEAR, {"arch": "small", "arch_args": {"encoder": "hf-hub:someone/else"}}, "no encoder"),
        (LINEAR, {"arch": "small", "arch_args": {"dim": 1e9}}, "dim"),
        (LINEAR, {"arch": "ginet", "arch_args": {"encoder": "convnext_xxlarge", "dim": 1024}}, "lacks the tensor"),
        (LINEAR, {"format_version": 7}, "format_version 7"),
        (LINEAR, {"bands": [1, 2]}, "mean"),
    ],
)
def test_files_that_do_not_fit_their_card_are_refused(tmp_path: Path, tensors: dict, change: dict, message: str) -> None:
    path = by_hand(tmp_path / "m.safetensors", tensors, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_card_of_an_enormous_network_costs_no_memory() -> None:
    """7 GB of weights, were they made."""
    card = ModelCard.model_validate(CARD | {"arch": "ginet", "arch_args": {"encoder": "convnext_xxlarge", "dim": 1024}})
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        _check_fit(Path("m.safetensors"), card, {})


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.safetensors").write_bytes(pickle.dumps(Bomb()))
    torch.save({"weight": Bomb()}, tmp_path / "zip.safetensors")
    for name in ("plain", "zip"):
        with pytest.raises(CheckpointError, match="pickle"):
            load_model(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -30, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = by_hand(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"short|not a whole"):
        load_model(path)


def test_an_enormous_tensor_of_the_wrong_shape_is_refused_unread(tmp_path: Path) -> None:
    path, size = tmp_path / "m.safetensors", 1 << 34
    weight = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    bias = {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}
    text = json.dumps({"__metadata__": {HEADER_KEY: json.dumps(CARD)}, "weight": weight, "bias": bias})
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text.encode())
        file.truncate(8 + len(text) + size)  # sparse: 16 GiB that take no space
    with pytest.raises(CheckpointError, match=r"'weight' .* is \(4294967296,\)"):
        load_model(path)


def test_tensors_that_overlap_or_leave_the_file_are_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "m.safetensors")
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    for place in ([0, 1 << 40], [4, 12]):
        header["bias"]["data_offsets"] = place
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 32)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_model(path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: No such file"):
        load_model(tmp_path / "none.safetensors")
