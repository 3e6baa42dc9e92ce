"""STAC items for exported models: the Machine Learning Model extension, so that catalogues can find and run them."""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.6.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
SHA256_MULTIHASH = "1220"
"""Multihash prefix of a SHA-256: the function's number and its length in bytes."""


def model_item(
    path: Path,
    *,
    architecture: str,
    bands: Sequence[str],
    classes: Sequence[dict[str, Any]],
    side: int,
    artifact: str,
    media_type: str,
    parameters: int,
    hyperparameters: dict[str, Any],
) -> dict[str, Any]:
    """Describe the exported model ``path`` as a STAC 1.1 item; its moment is when the file was written.

    Args:
        path: the model file.
        architecture: name of the network.
        bands: one name a band, in the order of the input.
        classes: name and colour ``#rrggbb`` of each class, in the order of the output.
        side: height and width of a tile in pixels.
        artifact: how the file was made, an ``mlm:artifact_type``.
        media_type: of the file.
        parameters: weights in the network.
        hyperparameters: how it was trained; those that are None are left out.
    """
    name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", path.stem).strip("-.") or "model"
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": name,
        "geometry": None,
        "properties": {
            "datetime": datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "mlm:name": name,
            "mlm:architecture": architecture,
            "mlm:framework": "ONNX" if path.suffix == ".onnx" else "PyTorch",
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:total_parameters": parameters,
            "mlm:input": [_input(bands, side)],
            "mlm:output": [_output(classes, side)],
            "mlm:hyperparameters": {key: value for key, value in hyperparameters.items() if value is not None},
        },
        "links": [],
        "assets": {"model": _asset(path, media_type, artifact, bands, f"{architecture}, {side} x {side} pixels, {len(classes)} classes")},
    }


def _asset(path: Path, media_type: str, artifact: str, bands: Sequence[str], title: str) -> dict[str, Any]:
    return {
        "href": f"./{path.name}",
        "title": title,
        "mlm:artifact_type": artifact,
        "bands": [{"name": band} for band in bands],
        "type": media_type,
        "roles": ["mlm:model", "data"],
        "file:size": path.stat().st_size,
        "file:checksum": SHA256_MULTIHASH + hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _input(bands: Sequence[str], side: int) -> dict[str, Any]:
    return {
        "name": "raw pixels divided by 255",
        "bands": list(bands),
        "input": {"shape": [-1, len(bands), side, side], "dim_order": ["batch", "bands", "height", "width"], "data_type": "float32"},
        "value_scaling": [{"type": "scale", "value": 255}],
    }


def _output(classes: Sequence[dict[str, Any]], side: int) -> dict[str, Any]:
    entries = []
    for index, one in enumerate(classes):
        entry = {"value": index, "name": re.sub(r"[^0-9A-Za-z_-]+", "_", one["name"]), "description": one["name"]}
        entries.append(entry | ({"color_hint": one["color"].lstrip("#").upper()} if one.get("color") else {}))
    return {
        "name": "class probabilities",
        "tasks": ["semantic-segmentation"],
        "result": {"shape": [-1, len(classes), side, side], "dim_order": ["batch", "classes", "height", "width"], "data_type": "float32"},
        "classification:classes": entries,
    }
