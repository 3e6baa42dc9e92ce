"""An oracle: a linear network whose largest score is the pixel's own value; its maps are the scenes themselves, whatever their form."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rsdistill.commands.predict import predict

CODES = 7
IDS = np.array([5, 3, 9, 1, 200, 17, 64], np.uint8)
TRANSFORMS = {
    "EPSG:32633": [
        Affine(2, 0, 4e5, 0, -2, 5e6),
        Affine(2, 0, 4e5, 0, 2, 5e6),
        Affine(1.5, 0.7, 4e5, 0.7, -1.5, 5e6),
        Affine(2, 0.9, 4e5, 0.1, -3, 5e6),
    ],
    "EPSG:4326": [Affine(1e-4, 0, 13, 0, -1e-4, 52), Affine(1e-4, 0, 179.999, 0, -2e-4, -40)],
    None: [Affine.identity(), Affine(1, 0, 50, 0, -1, 70)],
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Score k of pixel x is −(x − k)² but for what is the same for all k: 2kx − k²."""
    folder = tmp_path_factory.mktemp("oracle")
    codes = np.arange(CODES, dtype=np.float32)
    classes = [{"id": int(value), "name": f"c{value}", "color": "#808080"} for value in IDS]
    card = {"format_version": 1, "arch": "linear", "classes": classes, "bands": [1], "mean": [0.0], "std": [1.0]}
    weights = {"weight": (2 * codes)[:, None, None, None].copy(), "bias": -(codes**2)}
    save_file(weights, folder / "oracle.safetensors", metadata={"rsdistill": json.dumps(card)})
    return folder / "oracle.safetensors"


@st.composite
def forms(draw):
    """A scene's shape, place, type, layout and nodata, and how it is mapped."""
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    crs = draw(st.sampled_from(list(TRANSFORMS)))
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    part = (row, col, draw(st.integers(1, height - row)), draw(st.integers(1, width - col)))
    tile = draw(st.integers(max(1, max(height, width) // 12), 80))  # a hundred windows at most: each costs a little
    return {
        "shape": (height, width),
        "place": (crs, draw(st.sampled_from(TRANSFORMS[crs]))),
        "dtype": draw(st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"])),
        "blocks": draw(st.sampled_from([{}, {"tiled": True, "blockxsize": 16, "blockysize": 48}, {"blockysize": 7}])),
        "nodata": draw(st.sampled_from([None, 0, 4])),
        "seed": draw(st.integers(0, 999)),
        "window": draw(st.none() | st.just(part)),
        "options": {
            "tile": tile,
            "margin": draw(st.integers(0, (tile - 1) // 2)),
            "batch": draw(st.integers(1, 3)),
            "blend": draw(st.sampled_from(["core", "hann", "gaussian"])),
            "tta": draw(st.sampled_from(["none", "none", "d4"])),
        },
    }


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=forms())
def test_the_map_is_the_scene(tmp_path, oracle, form):
    codes = np.random.default_rng(form["seed"]).integers(0, CODES, form["shape"])
    (height, width), (crs, transform) = form["shape"], form["place"]
    place = {} if transform.is_identity else {"transform": transform}
    layout = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": form["dtype"], "nodata": form["nodata"]}
    scene, mask = tmp_path / "s.tif", tmp_path / "m.tif"
    with rasterio.open(scene, "w", crs=crs, **layout, **place, **form["blocks"]) as file:
        file.write(codes.astype(form["dtype"]), 1)
    predict(scene, out=[mask], model=oracle, window=form["window"], overwrite=True, device="cpu", **form["options"])
    expected = np.where(codes == form["nodata"], 255, IDS[codes]) if form["nodata"] is not None else IDS[codes]
    row, col, rows, cols = form["window"] or (0, 0, height, width)
    with rasterio.open(mask) as file:
        assert np.array_equal(file.read(1), expected[row : row + rows, col : col + cols])
        assert file.transform.almost_equals(transform @ Affine.translation(col, row), 1e-9)
    Path(scene).unlink()
