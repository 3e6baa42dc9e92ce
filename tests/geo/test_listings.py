"""Files that name scenes: lists, and STAC on disk."""

import json

import numpy as np
import pytest
import rasterio

from rsdistill.errors import SceneError
from rsdistill.geo.listings import scenes_in
from rsdistill.geo.scenes import find_scenes, open_scene


def item(name, **assets):
    return {"type": "Feature", "stac_version": "1.1.0", "id": name, "assets": assets, "links": []}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def catalogue(tmp_path):
    """A catalogue of one collection of two items, which lead back to it; the second scene is on the network."""
    links = [{"rel": "root", "href": "../catalog.json"}, {"rel": "item", "href": "a/a.json"}, {"rel": "item", "href": "./b.json"}]
    write(tmp_path / "catalog.json", {"type": "Catalog", "id": "all", "links": [{"rel": "child", "href": "./c/collection.json"}]})
    write(
        tmp_path / "c" / "collection.json",
        {"type": "Collection", "id": "c", "links": [*links, {"rel": "child", "href": "../catalog.json"}]},
    )
    picture = {"href": "a.png", "roles": ["thumbnail"]}
    write(tmp_path / "c" / "a" / "a.json", item("a", image={"href": "../../scenes/a.tif", "roles": ["data"]}, small=picture))
    write(tmp_path / "c" / "b.json", item("b", visual={"href": "https://host/b.tif"}))
    return tmp_path / "catalog.json"


def test_a_catalogue_is_followed_to_its_scenes(catalogue, tmp_path):
    (tmp_path / "scenes").mkdir()
    grid = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 0, 0, -2, 0)}
    with rasterio.open(tmp_path / "scenes" / "a.tif", "w", driver="GTiff", width=9, height=7, count=1, dtype="uint8", **grid) as file:
        file.write(np.ones((1, 7, 9), np.uint8))
    first, second = find_scenes([catalogue])
    with open_scene(first) as scene:
        assert (scene.grid.height, scene.grid.width) == (7, 9)
    assert str(second) in ("https://host/b.tif", "https:/host/b.tif")
    with pytest.raises(SceneError, match="is remote"):
        open_scene(second)


def test_items_stand_alone_or_together(catalogue, tmp_path):
    one = tmp_path / "c" / "a" / "a.json"
    assert [path.name for path in scenes_in(one)] == ["a.tif"]
    both = write(
        tmp_path / "items.json", {"type": "FeatureCollection", "features": [item("x", x={"href": "x.tif"}), item("y", y={"href": "y.TIF"})]}
    )
    assert scenes_in(both) == [tmp_path / "x.tif", tmp_path / "y.TIF"]


def test_references_of_stac_are_urls(tmp_path):
    """Relative ones too, in which blanks are encoded; a file may be named as it is all the same."""
    scene, odd = tmp_path / "a scene.tif", tmp_path / "50%20.tif"
    for path in (scene, odd):
        path.touch()
    hrefs = ("a%20scene.tif", scene.as_uri(), "a scene.tif", odd.name)
    items = [item(f"{number}", x={"href": href}) for number, href in enumerate(hrefs)]
    assert scenes_in(write(tmp_path / "items.json", {"type": "FeatureCollection", "features": items})) == [scene, scene, scene, odd]
    link = {"rel": "item", "href": (tmp_path / "items.json").as_uri()}
    assert scenes_in(write(tmp_path / "c.json", {"type": "Catalog", "links": [link]}))[0] == scene


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "list.txt").write_text("a.tif\nb.tif\n", encoding="utf-8-sig")
    assert scenes_in(tmp_path / "list.txt") == [tmp_path / "a.tif", tmp_path / "b.tif"]


def test_a_list_holds_one_path_a_line(tmp_path):
    path = write(tmp_path / "list.txt", f"# scenes of June\na.tif\n\n  sub/b.tif  \n{tmp_path}/c.tif\ns3://bucket/d.tif\n")
    *local, remote = find_scenes([path])
    assert local == [tmp_path / "a.tif", tmp_path / "sub" / "b.tif", tmp_path / "c.tif"]
    assert str(remote) in ("s3://bucket/d.tif", "s3:/bucket/d.tif")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no STAC item"),
        ({"type": "FeatureCollection"}, "is damaged"),
        ({"type": "Feature", "assets": {"a": 3}}, "is damaged"),
        ({"type": "Catalog", "links": [{"rel": "item", "href": "https://host/item.json"}]}, "leads to https://host/item.json"),
        ({"type": "Catalog", "links": [{"rel": "item", "href": "gone.json"}]}, r"cannot read .*gone\.json"),
        (item("s2", red={"href": "r.tif"}, green={"href": "g.tif"}), "item s2 in .* has not one raster, but: red, green"),
        (item("s2", text={"href": "r.txt"}), "has not one raster, but: none"),
    ],
)
def test_what_does_not_name_scenes_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(SceneError, match=message):
        scenes_in(write(tmp_path / "catalog.json", content))


def test_a_listing_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SceneError, match="cannot read"):
        scenes_in(tmp_path / "list.txt")
