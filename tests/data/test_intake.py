"""Scenes that fit together, their names, and where classes come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from rsdistill.data.intake import Intake, choose_table, common_names, fit_together, unique_names
from rsdistill.errors import ClassTableError, SceneError
from rsdistill.geo.burning import BurnOptions
from rsdistill.geo.scenes import open_scene
from rsdistill.reporting import Silent


def intake(path: Path, bands: int, dtype: str, descriptions: tuple[str, ...] = ()) -> Intake:
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=8, width=8, dtype=dtype, crs="EPSG:32633", transform=Affine(2, 0, 0, 0, -2, 0)
    ) as dataset:
        dataset.write(np.ones((bands, 8, 8), dtype))
        for band, text in enumerate(descriptions, start=1):
            dataset.set_band_description(band, text)
    return Intake(path.stem, open_scene(path), None)


def test_names_are_unique():
    assert unique_names([Path("a/x.tif"), Path("b/x.tif"), Path("b/y.tif")]) == ["a_x", "b_x", "y"]
    with pytest.raises(SceneError, match="a_x"):
        unique_names([Path("a/x.tif"), Path("a/x.png")])


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [("uint8", "uint8", "uint8"), ("uint8", "uint16", "uint16"), ("float32", "int16", "float32"), ("uint8", "int16", "int16")],
)
def test_types_meet_where_nothing_is_lost(tmp_path: Path, first, second, common):
    pair = [intake(tmp_path / "a.tif", 3, first), intake(tmp_path / "b.tif", 3, second)]
    intakes, dtype = fit_together(pair, ())
    assert ([one.bands for one in intakes], dtype) == ([(1, 2, 3)] * 2, common)


def test_scenes_that_do_not_fit_are_both_named(tmp_path: Path):
    with pytest.raises(SceneError, match=r"a.tif has pixels of type uint16, .*b.tif of type int16|b.tif has .* a.tif"):
        fit_together([intake(tmp_path / "a.tif", 3, "uint16"), intake(tmp_path / "b.tif", 3, "int16")], ())
    four = intake(tmp_path / "c.tif", 4, "uint16", ("b", "g", "r", "nir"))
    with pytest.raises(SceneError, match=r"a.tif has bands 1, 2, 3, .*c.tif has bands 1, 2, 3, 4"):
        fit_together([intake(tmp_path / "a.tif", 3, "uint16"), four], ())
    other = intake(tmp_path / "d.tif", 4, "uint16", ("b", "g", "r", "swir"))
    with pytest.raises(SceneError, match=r"d.tif has no band called 'nir'"):
        fit_together([four, other], ())


@pytest.mark.parametrize(
    ("wanted", "taken", "names"),
    [
        (("r", "b"), [(3, 1), (2, 4), None], ("r", "b")),
        ((), [(1, 2, 3, 4), (4, 3, 2, 1), (1, 2, 3, 4)], ("b", "g", "r", "nir")),
        ((3, 2, 1), [(3, 2, 1)] * 3, (None, None, None)),
    ],
    ids=["by name", "all", "by number"],
)
def test_bands_may_stand_in_any_order(tmp_path: Path, wanted, taken, names):
    orders = [("b", "g", "r", "nir"), ("nir", "r", "g", "b"), ()]
    given = [intake(tmp_path / f"{i}.tif", 4, "uint16", order) for i, order in enumerate(orders)]
    pairs = [(one, bands) for one, bands in zip(given, taken, strict=True) if bands]
    intakes, _ = fit_together([one for one, _ in pairs], wanted)
    assert [one.bands for one in intakes] == [bands for _, bands in pairs]
    assert common_names(intakes) == names


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    warn = message


def label(path: Path) -> Path:
    intake(path, 1, "uint8")
    return path


def choose(path: Path | None, labels: list[Path], folder: Path, **burn: Any) -> tuple[tuple[str, ...], tuple[int, ...], list[str]]:
    progress = Listening()
    table = choose_table(path, labels, [folder], BurnOptions(**burn), progress)
    return table.names, table.ids, progress.said


def test_the_class_table_is_the_one_given_or_beside_or_read_off(tmp_path: Path):
    raster = label(tmp_path / "l.tif")
    assert choose(None, [raster], tmp_path)[:2] == (("class 1",), (1,))
    assert "no class table" in choose(None, [raster], tmp_path)[2][0]
    names, ids, _ = choose(None, [tmp_path / "a.gpkg"], tmp_path, burn="building", background="rest")
    assert (names, ids) == (("rest", "building"), (0, 1))
    (tmp_path / "classes.toml").write_text('[[class]]\nid = 1\nname = "beside"')
    assert choose(None, [raster], tmp_path) == (("beside",), (1,), [f"classes: {tmp_path / 'classes.toml'}"])
    given = tmp_path / "given.toml"
    given.write_text('[[class]]\nid = 1\nname = "given"')
    assert choose(given, [raster], tmp_path) == (("given",), (1,), [])
    with pytest.raises(ClassTableError, match="neither labels nor a class table"):
        choose(None, [], tmp_path / "nowhere")
