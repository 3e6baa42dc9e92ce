"""``demo``: the whole way in small, and what it may and may not remove."""

import pytest

from rsdistill.commands import demo as module
from rsdistill.commands.demo import demo
from rsdistill.errors import OutputExistsError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a demo of two steps."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    demo(out=out, size=512, steps=2, device="cpu")
    return out


def test_it_leaves_what_the_contract_names_and_nothing_else(made):
    assert {path.name for path in made.iterdir()} == set(module.OWN)
    assert {"tiles", "teacher.safetensors", "student.safetensors"} <= {path.name for path in (made / "work").iterdir()}
    assert not [path for path in made.rglob("*") if ".part" in path.name]


def test_the_mask_lies_on_the_scene_and_has_nodata_where_the_scene_has_none(made):
    import numpy as np
    import rasterio

    with rasterio.open(made / "scene.tif") as scene, rasterio.open(made / "mask.tif") as mask, rasterio.open(made / "labels.tif") as labels:
        assert (mask.crs, mask.transform, mask.shape) == (scene.crs, scene.transform, scene.shape)
        assert np.array_equal(mask.read(1) == mask.nodata, scene.dataset_mask() == 0)
        assert set(np.unique(mask.read(1))) <= set(np.unique(labels.read(1))) | {int(mask.nodata)}


def test_twice_works_and_a_strange_file_in_its_folder_stays(made):
    (made / "notes.txt").write_text("mine")
    demo(out=made, size=512, steps=1, device="cpu")
    assert (made / "notes.txt").read_text() == "mine"
    (made / "notes.txt").unlink()


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path):
    for name in ("scene.tif", "thesis.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match="no former demo"):
        demo(out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", "thesis.txt"}
