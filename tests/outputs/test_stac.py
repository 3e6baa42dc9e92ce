"""STAC items: what the core specification and the Machine Learning Model extension 1.6 ask of them, looked up without the network."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pystac import Item, STACValidationError
from pystac.validation import validate_dict
from stac_model.schema import ItemMLModelExtension, MLModelProperties

from rsdistill.outputs.stac import model_item

CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
"""pystac brings this schema along; the extension's rules are what its own models hold."""


@pytest.fixture(params=[("onnx", ".onnx"), ("torch.export.save", ".pt2")], ids=["onnx", "pt2"])
def item(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    artifact, suffix = request.param
    path = tmp_path / f"my model{suffix}"
    path.write_bytes(b"weights")
    return model_item(
        path,
        architecture="small",
        bands=["red", "nir"],
        classes=[{"name": "bare soil", "color": "#a0b1c2"}, {"name": "water"}],
        side=64,
        artifact=artifact,
        media_type="application/octet-stream",
        parameters=1234,
        hyperparameters={"method": "kd", "teachers": None, "seed": 0},
    )


def test_the_core_asks_for_these(item: dict[str, Any]) -> None:
    assert (item["type"], item["stac_version"], item["links"]) == ("Feature", "1.1.0", [])
    assert re.fullmatch(r"[\w.-]+", item["id"])
    assert item["geometry"] is None
    assert "bbox" not in item  # required with a geometry, forbidden without
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", item["properties"]["datetime"])
    assert all(re.fullmatch(r"https://stac-extensions\.github\.io/\w+/v[\d.]+/schema\.json", one) for one in item["stac_extensions"])


def test_the_extension_asks_for_these(item: dict[str, Any]) -> None:
    properties = item["properties"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= properties.keys()
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert properties["mlm:tasks"] == ["semantic-segmentation"]
    assert properties["mlm:framework"] in ("ONNX", "PyTorch")
    assert properties["mlm:hyperparameters"] == {"method": "kd", "seed": 0}
    (given,), (answer,) = properties["mlm:input"], properties["mlm:output"]
    assert given["input"].keys() == answer["result"].keys() == {"shape", "dim_order", "data_type"}
    assert len(given["input"]["shape"]) == len(given["input"]["dim_order"])
    assert (given["input"]["shape"], answer["result"]["shape"]) == ([-1, 2, 64, 64], [-1, 2, 64, 64])
    assert given["value_scaling"] == [{"type": "scale", "value": 255}]


def test_classes_are_named_for_machines_and_coloured(item: dict[str, Any]) -> None:
    soil, water = item["properties"]["mlm:output"][0]["classification:classes"]
    assert soil == {"value": 0, "name": "bare_soil", "description": "bare soil", "color_hint": "A0B1C2"}
    assert water == {"value": 1, "name": "water", "description": "water"}


def test_one_asset_is_the_model_and_carries_its_bands(item: dict[str, Any]) -> None:
    (asset,) = [one for one in item["assets"].values() if "mlm:model" in one["roles"]]
    assert asset["mlm:artifact_type"] in ("onnx", "torch.export.save")
    assert [band["name"] for band in asset["bands"]] == item["properties"]["mlm:input"][0]["bands"]
    assert asset["file:checksum"] == "1220" + hashlib.sha256(b"weights").hexdigest()
    assert asset["file:size"] == 7


def test_the_schema_of_the_core_takes_it(item: dict[str, Any]) -> None:
    assert validate_dict(item, extensions=[]) == [CORE]
    with pytest.raises(STACValidationError):
        validate_dict({**item, "bbox": "everywhere"}, extensions=[])


def test_the_extensions_own_models_take_it(item: dict[str, Any]) -> None:
    properties = item["properties"]
    assert MLModelProperties.model_validate(properties).architecture == "small"
    assert ItemMLModelExtension.has_extension(Item.from_dict(item))
    for broken in ({"mlm:tasks": ["guessing"]}, {"mlm:input": [{"name": "x"}]}, {"mlm:name": ""}):
        with pytest.raises(ValidationError):
            MLModelProperties.model_validate(properties | broken)
