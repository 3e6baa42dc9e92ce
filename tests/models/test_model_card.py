"""The model card: read without torch, lenient with what is missing, strict with what is wrong."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rsdistill.errors import CheckpointError
from rsdistill.models.card import HEADER_KEY, MAX_HEADER_BYTES, ModelCard, read_card

MINIMAL: dict[str, Any] = {
    "format_version": 1,
    "arch": "linear",
    "classes": [{"id": 1, "name": "water"}, {"id": 2, "name": "land"}],
    "bands": [1],
    "mean": [0],
    "std": [1],
}


def write(path: Path, card: object, header: dict[str, Any] | None = None) -> Path:
    """Write a safetensors file without tensors whose metadata holds ``card``."""
    text = card if isinstance(card, str) else json.dumps(card)
    content = json.dumps({"__metadata__": {HEADER_KEY: text}} if header is None else header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    return path


def test_a_card_is_read_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", MINIMAL)
    code = (
        "import sys; import rsdistill.models as m; from rsdistill.models.card import read_card;"
        f"card = read_card({str(path)!r}); print(card.arch, len(m.ARCHITECTURES), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["linear", "11", "False"]


def test_six_keys_are_enough(tmp_path: Path) -> None:
    card = read_card(write(tmp_path / "m.safetensors", MINIMAL))
    assert card.class_names == ("water", "land")
    assert card.std == (1.0,)
    assert card.arch_args == {}
    assert card.canvas_margin is None


def test_unknown_keys_and_all_known_ones_survive(tmp_path: Path) -> None:
    full = MINIMAL | {
        "arch_args": {"dim": 8},
        "band_names": [None],
        "dtype": "uint16",
        "nodata": [0.0],
        "pixel_size": [0.5, 0.25],
        "ignore": [0],
        "tile": 512,
        "margin": 64,
        "context_ratio": 8,
        "canvas_margin": 128,
        "method": "kd",
        "seed": 3,
        "versions": {"torch": "2"},
        "note": {"by": "hand"},
    }
    card = read_card(write(tmp_path / "m.safetensors", full))
    again = read_card(write(tmp_path / "n.safetensors", card.model_dump_json()))
    assert again == card
    assert json.loads(card.model_dump_json())["note"] == {"by": "hand"}


def test_a_nodata_that_is_not_a_number_survives(tmp_path: Path) -> None:
    card = ModelCard.model_validate(MINIMAL | {"nodata": float("nan")})
    nodata = read_card(write(tmp_path / "m.safetensors", card.model_dump_json())).nodata
    assert nodata != nodata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"format_version": None}, "format_version None"),
        ({"arch": None}, "arch"),
        ({"classes": []}, "classes"),
        ({"classes": [{"id": -1, "name": "a"}]}, "classes"),
        ({"classes": [{"id": 1}]}, "classes"),
        ({"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "class ids"),
        ({"classes": [{"id": k, "name": str(k)} for k in range(256)]}, "classes"),
        ({"bands": [0]}, "counted from 1"),
        ({"bands": []}, "bands"),
        ({"mean": [0, 0]}, "mean"),
        ({"mean": ["NaN"]}, "mean"),
        ({"std": [0]}, "std"),
        ({"std": ["Infinity"]}, "std"),
        ({"std": []}, "std"),
        ({"band_names": ["a", "b"]}, "band_names"),
        ({"tile": 0}, "tile"),
        ({"context_ratio": 0}, "context_ratio"),
        ({"canvas_margin": -1}, "canvas_margin"),
    ],
)
def test_impossible_cards_are_refused_with_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "m.safetensors", MINIMAL | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_card(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("missing", MINIMAL)
def test_the_six_keys_are_needed(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path / "m.safetensors", {key: value for key, value in MINIMAL.items() if key != missing})
    with pytest.raises(CheckpointError, match=missing):
        read_card(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "null", "NaN"])
def test_a_card_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError):
        read_card(write(tmp_path / "m.safetensors", text))


@pytest.mark.parametrize("header", [{}, {"__metadata__": {}}, {"__metadata__": 3}, {"__metadata__": {HEADER_KEY: 3}}])
def test_tensors_without_a_card_are_not_a_model(tmp_path: Path, header: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="not a model of this toolkit") as caught:
        read_card(write(tmp_path / "weights.safetensors", "", header))
    assert "--weights" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x00" * 7, "not a safetensors file"),
        (b"PK\x03\x04" + b"\x00" * 60, "pickle"),
        (b"\x80\x02}q\x00." + b"\x00" * 60, "pickle"),
        (b"\x80\x05\x95" + b"\x00" * 60, "pickle"),
        (struct.pack("<Q", 2**63) + b"{}", "cut short"),
        (struct.pack("<Q", 100) + b'{"__metadata__"', "cut short"),
        (struct.pack("<Q", 0) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 4) + b"\xff\xfe\x00\x01", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a table"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not JSON"),
        (b"II*\x00" + b"\x00" * 60, "not"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_card(path)
    assert caught.value.hint


def test_a_header_that_would_fill_memory_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(1 << 34)  # sparse: 16 GiB that take no space
    with pytest.raises(CheckpointError, match="claims"):
        read_card(path)


def test_places_that_hold_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_card(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_card(tmp_path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_card("/dev/zero")
