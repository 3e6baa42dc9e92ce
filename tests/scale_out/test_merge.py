"""``merge``: all shards of one map or none; what is missing or foreign is named."""

import json
import shutil

import pytest
import rasterio
from cases import OPTIONS, holed
from harness import ended, write_linear, write_raster

from rsdistill.commands.merge import merge
from rsdistill.commands.predict import predict
from rsdistill.config import read_toml
from rsdistill.errors import ConfigError, MaskError, OutputExistsError


@pytest.fixture(scope="module")
def made(case, tmp_path_factory):
    """Three shards with confidence."""
    folder = tmp_path_factory.mktemp("made")
    for index in (1, 2, 3):
        predict(case.scene, work=case.work, out=[folder / "m.tif"], confidence=folder / "c.tif", shard=f"{index}/3", **OPTIONS)
    return folder


@pytest.fixture
def shards(made, tmp_path):
    return shutil.copytree(made, tmp_path / "shards")


def test_without_a_name_the_map_stands_beside_its_shards(case, shards):
    result = merge(shards)
    assert result.paths == (shards / "m.tif",)
    assert {path.name for path in shards.iterdir()} >= {"m.tif", "m.tif.aux.xml", "m.qml", "m.run.toml", "m.1-of-3.tif"}
    options = read_toml(shards / "m.run.toml")
    assert options.pop("command") == "merge"
    before = (shards / "m.tif").read_bytes()
    with pytest.raises(OutputExistsError):
        merge(**options)
    merge(**options | {"overwrite": True})
    assert (shards / "m.tif").read_bytes() == before


def test_a_shard_that_is_named_twice_counts_once(shards, tmp_path):
    merge([shards, shards / "m.1-of-3.tif"], out=[tmp_path / "m.tif"])
    assert (tmp_path / "m.tif").exists()


def test_a_shard_is_not_replaced_by_its_map(shards):
    before = (shards / "m.1-of-3.tif").read_bytes()
    with pytest.raises(OutputExistsError, match="one of the shards"):
        merge(shards, out=[shards / "m.1-of-3.tif"], overwrite=True)
    assert (shards / "m.1-of-3.tif").read_bytes() == before


def test_a_name_that_promises_endless_shards_takes_no_memory(tmp_path):
    (tmp_path / "m.2-of-99999999999.tif").touch()
    with pytest.raises(MaskError, match=r"99999999998 of 99999999999 shards are missing: .*m\.1-of.*m\.9-of.*and 99999999990 more"):
        merge(tmp_path)


def test_shards_that_are_missing_are_named(shards):
    (shards / "m.2-of-3.tif").unlink()
    with pytest.raises(MaskError, match=r"1 of 3 shards are missing: .*m\.2-of-3\.tif") as caught:
        merge(shards)
    assert "--shard" in caught.value.hint
    assert not (shards / "m.tif").exists()


@pytest.mark.parametrize(
    ("change", "what"), [({"margin": 4}, "layout, options"), ({"model": "other"}, "model"), ({"scene": "other"}, "scene")]
)
def test_shards_of_another_run_are_named_with_what_differs(case, shards, tmp_path, change, what):
    write_linear(case.work / "other.safetensors", classes=4, seed=9)
    write_raster(tmp_path / "other.tif", holed(400, 330, seed=5), nodata=0)
    scene = tmp_path / "other.tif" if change.pop("scene", None) else case.scene
    how = {"work": case.work, "out": [shards / "m.tif"], "confidence": shards / "c.tif", "overwrite": True, **OPTIONS, **change}
    predict(scene, shard="2/3", **how)
    with pytest.raises(MaskError, match=rf"another run \({what} differ.*m\.2-of-3\.tif$"):
        merge(shards)


def test_files_that_only_look_like_shards_are_named(shards):
    shutil.copy(shards / "m.1-of-3.tif", shards / "m.2-of-3.tif")
    with pytest.raises(MaskError, match=r"m\.2-of-3\.tif is shard 1 of 3 by its card"):
        merge(shards)
    write_raster(shards / "m.2-of-3.tif", holed(30, 30))
    with pytest.raises(MaskError, match=r"no shards, or cut short: .*m\.2-of-3\.tif"):
        merge(shards)
    (shards / "m.2-of-3.tif").write_bytes((shards / "m.1-of-3.tif").read_bytes()[:900])
    with pytest.raises(MaskError, match=r"m\.2-of-3\.tif"):
        merge(shards)
    assert not (shards / "m.tif").exists()


def test_two_cuts_side_by_side_are_not_mixed(case, shards):
    predict(case.scene, work=case.work, out=[shards / "m.tif"], shard="1/2", **OPTIONS)
    with pytest.raises(MaskError, match=r"several cuts .*m\.1-of-2\.tif, .*m\.1-of-3\.tif"):
        merge(shards)


def test_a_shard_whose_pixels_are_damaged_leaves_no_map(shards):
    path = shards / "m.3-of-3.tif"
    with rasterio.open(path) as file:
        place, size = (int(file.get_tag_item(f"{name}_0_0", "TIFF", bidx=1)) for name in ("BLOCK_OFFSET", "BLOCK_SIZE"))
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(MaskError, match=r"cannot be read: .*m\.3-of-3\.tif"):
        merge(shards)
    assert not (shards / "m.tif").exists()


def test_what_shards_do_not_hold_cannot_be_asked_for(shards, tmp_path):
    with pytest.raises(ConfigError, match="hold no probabilities"):
        merge(shards, out=tmp_path / "m.tif", probabilities=tmp_path / "p.tif")
    with pytest.raises(MaskError, match="no shard in"):
        merge(tmp_path)


def test_several_maps_are_merged_at_once_and_broken_ones_listed(case, shards, tmp_path):
    scene = write_raster(tmp_path / "n.tif", holed(60, 60))
    for index in (1, 2):
        predict(scene, work=case.work, out=[shards / "n.tif"], shard=f"{index}/2", **OPTIONS)
    result = merge(shards, out=tmp_path / "maps")
    assert result.paths == (tmp_path / "maps" / "m.tif", tmp_path / "maps" / "n.tif")
    (shards / "m.1-of-3.tif").unlink()
    run = ended("merge", shards, "--out", tmp_path / "again", "--json")
    assert run.code == 6
    assert [failure for failure in json.loads(run.out)["failures"] if "m.1-of-3.tif" in failure]
    assert (tmp_path / "again" / "n.tif").exists()


def test_how_the_map_is_written_may_be_said_when_it_is_merged(shards, tmp_path):
    merge(shards, out=[tmp_path / "a.tif", tmp_path / "a.gpkg"])
    merge(shards, out=[tmp_path / "b.tif", tmp_path / "b.gpkg"], compress="lzw", min_area=20)
    import geopandas

    with rasterio.open(tmp_path / "a.tif") as plain, rasterio.open(tmp_path / "b.tif") as lzw:
        assert (plain.profile["compress"], lzw.profile["compress"]) == ("deflate", "lzw")
        assert (plain.read() == lzw.read()).all()
    assert len(geopandas.read_file(tmp_path / "b.gpkg", layer="b")) < len(geopandas.read_file(tmp_path / "a.gpkg", layer="a"))
