"""Bands by number, and by name wherever names tell."""

import numpy as np
import pytest

from rsdistill.errors import SceneError
from rsdistill.geo.bands import match_bands
from rsdistill.geo.scenes import open_scene


@pytest.mark.parametrize(
    ("called", "names", "found"),
    [
        (("red", "green", "blue"), ("blue", "red"), (3, 1)),
        (("blue", "red", "nir"), ("blue", "red"), (1, 2)),
        ((), ("blue", "red"), (1, 2)),
        (("a", "b", "c"), ("blue", "red"), (1, 2)),
        (("red", "green", "blue"), ("blue", None), (1, 2)),
        (("red", "green", "blue"), ("red", "red"), (1, 2)),
        (("red", "red", "blue"), ("blue", "red"), (1, 2)),
    ],
    ids=["elsewhere", "in place", "scene without names", "other names", "model without names", "one name twice", "scene with twins"],
)
def test_names_win_where_they_tell(write_raster, called, names, found):
    with open_scene(write_raster("s.tif", np.zeros((3, 4, 4), np.uint8), descriptions=called)) as scene:
        assert match_bands(scene, (1, 2), names) == found


def test_half_of_the_names_is_no_match(write_raster):
    with (
        open_scene(write_raster("s.tif", np.zeros((3, 4, 4), np.uint8), descriptions=("rde", "green", "blue"))) as scene,
        pytest.raises(SceneError, match=r"no band called 'red'; did you mean 'rde'") as caught,
    ):
        match_bands(scene, (1, 2), ("blue", "red"))
    assert "--bands" in caught.value.hint
