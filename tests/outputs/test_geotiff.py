import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.shutil import exists
from rio_cogeo.cogeo import cog_validate

from rsdistill.errors import ConfigError, DiskError, OutputExistsError
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import FloatRasterWriter, LabelRasterWriter, restyle

TABLE = ClassTable((LandClass(1, "building", "#e41a1c"), LandClass(4, "water & ice", "#377eb8"), LandClass(7, "forest", "#4daf4a")))
WIDE = ClassTable((LandClass(3, "a", "#000000"), LandClass(300, "b", "#ffffff")))
UTM = Grid(1300, 700, CRS.from_epsg(32640), Affine(0.5, 0, 500_000, 0, -0.5, 2_800_000))


def blobs(height: int, width: int, classes: int, seed: int = 0) -> np.ndarray:
    """Class indices in lumps of 16 pixels, with a strip of 255 on the left."""
    small = np.random.default_rng(seed).integers(0, classes, (-(-height // 16), -(-width // 16)), dtype=np.uint8)
    index = np.kron(small, np.ones((16, 16), np.uint8))[:height, :width].copy()
    index[:, : width // 8] = 255
    return index


def write(path: Path, index: np.ndarray, grid: Grid, table: ClassTable, strip: int = 100, **options: object) -> Path:
    with LabelRasterWriter(path, grid, table, **options) as writer:
        for row in range(0, grid.height, strip):
            writer.write(row, index[row : row + strip])
    return path


@pytest.mark.parametrize("table", [TABLE, WIDE], ids=["uint8", "uint16"])
def test_a_mask_is_a_valid_cog_with_the_right_pixels_palette_and_nodata(tmp_path: Path, table: ClassTable) -> None:
    index = blobs(1300, 700, len(table))
    path = write(tmp_path / "mask.tif", index, UTM, table, tags={"RSDISTILL_MODEL": "student <1>"})
    valid, errors, warnings = cog_validate(path, strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as file:
        assert file.dtypes == (table.dtype,)
        assert file.nodata == table.nodata
        assert file.crs == UTM.crs
        assert file.transform == UTM.transform
        assert (file.read(1) == table.to_ids(index)).all()
        assert file.descriptions == ("class",)
        assert file.tags()["RSDISTILL_MODEL"] == "student <1>"
        palette = file.colormap(1)
        assert all(palette[one.id][:3] == one.rgb for one in table.classes)


def test_overviews_hold_only_real_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.tif", blobs(1300, 700, 3), UTM, TABLE)
    with rasterio.open(path) as file:
        assert file.overviews(1)
        small = file.read(1, out_shape=(file.height // 2, file.width // 2))
    assert set(np.unique(small)) <= {1, 4, 7, 255}
    with rasterio.open(path, overview_level=0) as overview:
        assert set(np.unique(overview.read(1))) <= {1, 4, 7, 255}


def test_names_and_style_stand_beside_the_mask_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "mask.tif", blobs(1300, 700, 3), UTM, TABLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.qml", "mask.tif", "mask.tif.aux.xml"]
    names = (tmp_path / "mask.tif.aux.xml").read_text(encoding="utf-8")
    assert "<Category>building</Category>" in names
    assert "water &amp; ice" in names
    style = (tmp_path / "mask.qml").read_text(encoding="utf-8")
    assert style.count("<paletteEntry") == 3
    assert 'label="water &amp; ice"' in style


@pytest.mark.parametrize("strip", [1, 7, 512, 700, 1300])
def test_bytes_do_not_depend_on_the_height_of_the_strips(tmp_path: Path, strip: int) -> None:
    index = blobs(1300, 700, 3)
    one = write(tmp_path / "one.tif", index, UTM, TABLE, strip=333)
    other = write(tmp_path / "other.tif", index, UTM, TABLE, strip=strip)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (513, 511)])
@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (None, Affine.identity()),
        (None, Affine(2, 0, 10, 0, 2, 20)),
        (CRS.from_epsg(4326), Affine(1e-5, 0, 55.3, 0, -1e-5, 25.2)),
        (CRS.from_epsg(2193), Affine(0.3, 0.1, 1e6, 0.1, -0.3, 5e6)),
    ],
    ids=["pixels", "south-up", "degrees", "rotated"],
)
def test_every_shape_and_grid_comes_back(tmp_path: Path, shape: tuple[int, int], crs: CRS | None, transform: Affine) -> None:
    grid = Grid(*shape, crs, transform)
    index = np.random.default_rng(1).integers(0, 3, shape, dtype=np.uint8)
    path = write(tmp_path / "m.tif", index, grid, TABLE)
    with rasterio.open(path) as file:
        assert (file.read(1) == TABLE.to_ids(index)).all()
        assert file.crs == crs
        assert file.transform.almost_equals(transform, 1e-12)


def test_an_existing_mask_is_refused_and_replaced_on_request(tmp_path: Path) -> None:
    index = blobs(1300, 700, 3)
    path = write(tmp_path / "mask.tif", index, UTM, TABLE)
    with pytest.raises(OutputExistsError, match=r"mask\.tif exists"):
        write(path, index, UTM, TABLE)
    write(path, (index + 1).clip(0, 2).astype(np.uint8), UTM, TABLE, overwrite=True)
    with rasterio.open(path) as file:
        assert (file.read(1) == TABLE.to_ids((index + 1).clip(0, 2))).all()


@pytest.mark.parametrize("error", [RuntimeError("stop"), OSError("a scene broke"), KeyboardInterrupt()])
def test_an_error_in_the_block_goes_through_unchanged_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def spoiled() -> None:
        with LabelRasterWriter(tmp_path / "mask.tif", UTM, TABLE) as writer:
            writer.write(0, blobs(600, 700, 3))
            raise error

    with pytest.raises(type(error)) as caught:
        spoiled()
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_missing_or_displaced_rows_are_refused(tmp_path: Path) -> None:
    def unfinished() -> None:
        with LabelRasterWriter(tmp_path / "mask.tif", UTM, TABLE) as writer:
            writer.write(0, blobs(600, 700, 3))

    def displaced() -> None:
        with LabelRasterWriter(tmp_path / "mask.tif", UTM, TABLE) as writer:
            writer.write(100, blobs(600, 700, 3))

    with pytest.raises(ValueError, match="600 of 1300 rows"):
        unfinished()
    with pytest.raises(ValueError, match="do not follow row 0"):
        displaced()
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_the_disk_lost_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rsdistill.outputs.geotiff as module

    real = module.block_rows
    monkeypatch.setattr(module, "block_rows", lambda path: ((row, values * 0) for row, values in real(path)))
    with pytest.raises(DiskError, match="other pixels"):
        write(tmp_path / "mask.tif", blobs(1300, 700, 3), UTM, TABLE)
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from affine import Affine
from rsdistill.errors import DiskError
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import LabelRasterWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
noise = np.random.default_rng(0).integers(0, 2, (1024, 1024), dtype=np.uint8)
table = ClassTable((LandClass(1, "a", "#000000"), LandClass(2, "b", "#ffffff")))
try:
    with LabelRasterWriter(Path(sys.argv[1]), Grid(1024, 1024, None, Affine.identity()), table) as writer:
        writer.write(0, noise)
except DiskError as error:
    sys.exit(3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files through Linux' RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [100, 20_000, 150_000, 200_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "mask.tif", str(limit)], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["COMPRESS", "TILING_SCHEME", "overview_resampling", "NBITS"])
def test_creation_options_that_change_pixels_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=key.upper()):
        LabelRasterWriter(tmp_path / "mask.tif", UTM, TABLE, creation_options={key: "1"})


def test_free_creation_options_arrive(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.tif", blobs(1300, 700, 3), UTM, TABLE, compress="zstd", creation_options={"blocksize": "256"})
    with rasterio.open(path) as file:
        assert file.profile["compress"] == "zstd"
        assert file.block_shapes == [(256, 256)]


def test_an_empty_scene_takes_no_space(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.tif", np.full((1300, 700), 255, np.uint8), UTM, TABLE)
    assert path.stat().st_size < 10_000
    with rasterio.open(path) as file:
        assert (file.read(1) == 255).all()


def test_confidence_comes_back_within_half_a_step(tmp_path: Path) -> None:
    grid = Grid(600, 300, UTM.crs, UTM.transform)
    values = np.random.default_rng(2).random((600, 300), dtype=np.float32)
    values[:50] = np.nan
    with FloatRasterWriter(tmp_path / "confidence.tif", grid) as writer:
        writer.write(0, values[:400])
        writer.write(400, values[400:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confidence.tif"]
    assert cog_validate(tmp_path / "confidence.tif", strict=True)[0]
    with rasterio.open(tmp_path / "confidence.tif") as file:
        stored = file.read(1, masked=True)
        assert file.dtypes == ("uint8",)
        assert (stored.mask == np.isnan(values)).all()
        read = stored.astype(float) * file.scales[0] + file.offsets[0]
    assert abs(read - values).max() <= 0.5 / 254 + 1e-6


def test_probabilities_have_one_named_band_a_class(tmp_path: Path) -> None:
    grid = Grid(30, 40, None, Affine.identity())
    values = np.random.default_rng(3).random((3, 30, 40)).astype(np.float16)
    with FloatRasterWriter(tmp_path / "p.tif", grid, TABLE.names) as writer:
        writer.write(0, values)
    with rasterio.open(tmp_path / "p.tif") as file:
        assert file.descriptions == TABLE.names
        assert abs(file.read() / 254 - values.astype(float)).max() <= 0.5 / 254 + 1e-6


def test_restyling_changes_colours_and_names_but_no_pixel(tmp_path: Path) -> None:
    index = blobs(1300, 700, 3)
    path = write(tmp_path / "mask.tif", index, UTM, TABLE, compress="zstd", tags={"RSDISTILL_MODEL": "m"})
    changed = ClassTable((LandClass(1, "house", "#010203"), *TABLE.classes[1:]))
    restyle(path, changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.qml", "mask.tif", "mask.tif.aux.xml"]
    assert cog_validate(path, strict=True)[0]
    assert exists(path)
    with rasterio.open(path) as file:
        assert file.colormap(1)[1] == (1, 2, 3, 255)
        assert file.tags()["RSDISTILL_MODEL"] == "m"
        assert (file.read(1) == TABLE.to_ids(index)).all()
        assert file.profile["compress"] == "zstd"
    assert "house" in (tmp_path / "mask.qml").read_text(encoding="utf-8")
