"""Strips of a part framed as strips of the whole, and the names of results."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdistill.errors import ConfigError
from rsdistill.geo.windows import Window
from rsdistill.inference.blending import INVALID, Strip
from rsdistill.inference.naming import name_products
from rsdistill.inference.products import framed

FRAME = Window(10, 20, 1300, 9)


@settings(deadline=None)
@given(st.integers(10, 1309), st.integers(20, 28), st.integers(1, 1300), st.integers(1, 9), st.integers(1, 900), st.booleans())
def test_what_lies_around_the_area_has_no_data(row, col, height, width, strip_height, scores):
    area = Window(row, col, height, width).intersection(FRAME)
    parts = [
        Strip(
            top,
            np.full((min(strip_height, area.height - top), area.width), 3, np.uint8),
            np.full((min(strip_height, area.height - top), area.width), 0.5, np.float32) if scores else None,
            np.full((2, min(strip_height, area.height - top), area.width), 0.5, np.float32) if scores else None,
        )
        for top in range(0, area.height, strip_height)
    ]
    found = list(framed(parts, area, FRAME, 2))
    assert [strip.row for strip in found] == np.cumsum([0, *(len(strip.labels) for strip in found)])[:-1].tolist()
    labels = np.concatenate([strip.labels for strip in found])
    expected = np.full((FRAME.height, FRAME.width), INVALID, np.uint8)
    expected[area.relative_to(FRAME).slices] = 3
    assert np.array_equal(labels, expected)
    if scores:
        assert np.array_equal(np.isnan(np.concatenate([strip.confidence for strip in found])), expected == INVALID)
        assert np.array_equal(np.isnan(np.concatenate([strip.probabilities for strip in found], axis=1))[1], expected == INVALID)


def test_names_of_results(tmp_path):
    scenes = [tmp_path / "a.tif", tmp_path / "b.tif"]
    named = name_products(scenes, [tmp_path / "m", tmp_path / "{stem}.gpkg"], tmp_path / "m", None, overwrite=False)
    assert named[scenes[1]].outs == (tmp_path / "m" / "b.tif", tmp_path / "b.gpkg")
    assert named[scenes[1]].confidence == tmp_path / "m" / "b_confidence.tif"
    one = name_products(scenes[:1], [tmp_path / "x.TIF"], None, None, overwrite=False)
    assert one[scenes[0]].of_kind("raster") == [tmp_path / "x.TIF"]
    with pytest.raises(ConfigError, match=r"no writer for '\.gpk'.*did you mean '\.gpkg'"):
        name_products(scenes[:1], [tmp_path / "x.gpk"], None, None, overwrite=False)
