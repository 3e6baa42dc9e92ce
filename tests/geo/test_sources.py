"""What is let near GDAL: the file's first bytes decide, and a VRT may name only its own folder."""

from pathlib import Path

import numpy as np
import pytest

from rsdistill.errors import SceneError
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.sources import check_source, is_remote, parse_xml
from rsdistill.geo.windows import Window

VRT = """<VRTDataset rasterXSize="5" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">{extra}
<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>
</VRTRasterBand></VRTDataset>"""
PIXELS = np.arange(20, dtype=np.uint8).reshape(1, 4, 5)


def vrt(folder: Path, source: str, relative: int = 1, extra: str = "") -> Path:
    path = folder / "scene.vrt"
    path.write_text(VRT.format(source=source, relative=relative, extra=extra))
    return path


def test_the_bytes_say_what_a_file_is(write_raster, tmp_path: Path):
    path = write_raster("photo.tif", np.repeat(PIXELS, 3, axis=0), driver="JPEG", crs=None, transform=None)
    assert check_source(path).driver == "JPEG"
    tif = write_raster("scene.tif", PIXELS)
    assert check_source(tif.rename(tmp_path / "scene.jp2")).driver == "GTiff"


def test_remote_names_are_known_in_every_spelling():
    for name in ("https://a.b/c.tif", "s3://bucket/c.tif", "/vsicurl/https://a.b/c.tif", "/vsis3/b/c.tif"):
        assert is_remote(name)
        assert is_remote(Path(name))
    assert not is_remote("scenes/a.tif")
    assert check_source(Path("https://a.b/c.tif"), allow_remote=True).name == "https://a.b/c.tif"


def test_a_vrt_needs_permission_and_reads_its_folder(write_raster, tmp_path: Path):
    write_raster("part.tif", PIXELS)
    path = vrt(tmp_path, "part.tif")
    with pytest.raises(SceneError, match="VRT") as caught:
        open_scene(path)
    assert "--allow-vrt" in caught.value.hint
    with open_scene(path, allow_vrt=True) as scene:
        assert np.array_equal(scene.read(Window(0, 0, 4, 5), (1,))[0], PIXELS)


@pytest.mark.parametrize(
    ("source", "relative", "extra", "message"),
    [
        ("../part.tif", 1, "", "outside its folder"),
        ("/etc/passwd", 0, "", "outside its folder"),
        ("/vsicurl/http://a.b/c.tif", 0, "", "remote source"),
        ("https://a.b/c.tif", 0, "", "remote source"),
        ("part.tif", 1, "<PixelFunctionType>x</PixelFunctionType>", "pixel function"),
        ("part.tif", 1, "<PixelFunctionCode>import os</PixelFunctionCode>", "pixel function"),
        ("missing.tif", 1, "", "does not exist"),
        ("scene.vrt", 1, "", "VRT"),
    ],
)
def test_a_vrt_reaches_nowhere_else(write_raster, tmp_path: Path, source, relative, extra, message):
    write_raster("part.tif", PIXELS)
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "part.tif").write_bytes((tmp_path / "part.tif").read_bytes())
    with pytest.raises(SceneError, match=message):
        open_scene(vrt(folder, source, relative, extra), allow_vrt=True)


def test_xml_defines_nothing(tmp_path: Path):
    bomb = tmp_path / "bomb.xml"
    bomb.write_text('<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>')
    with pytest.raises(ValueError, match="entities"):
        parse_xml(bomb)
    bomb.write_text("<a>")
    with pytest.raises(ValueError, match="not XML"):
        parse_xml(bomb)
