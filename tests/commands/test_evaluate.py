"""``evaluate`` against counts made by hand: the scene's bands say what the linear model answers, the labels are drawn beside it."""

import json
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from safetensors.numpy import save_file

from rsdistill.commands.evaluate import evaluate
from rsdistill.commands.tile import tile
from rsdistill.config import run_options
from rsdistill.errors import ClassTableError, ConfigError, LabelError, MaskError, OutputExistsError, TileSetError
from rsdistill.geo.classes import IGNORE, ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.metrics import Boundary, Confusion
from rsdistill.models import ModelCard, build_network, save_model
from rsdistill.outputs.geotiff import LabelRasterWriter

TABLE = ClassTable((LandClass(3, "water", "#2060e0"), LandClass(7, "land", "#40a040"), LandClass(1, "roof", "#e04020")), (0,))
TRANSFORM = Affine(2, 0, 400_000, 0, -2, 5_000_000)
CRS = "EPSG:32633"


class Heard:
    """A progress that remembers what it was warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def task(self, name: str, total: float | None = None) -> object:
        from rsdistill.reporting import SILENT

        return SILENT.task(name, total)


def lumps(seed: int, height: int = 150, width: int = 130, size: int = 10) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 3, (-(-height // size), -(-width // size)), dtype=np.uint8)
    return np.kron(small, np.ones((size, size), np.uint8))[:height, :width]


def write(path: Path, values: np.ndarray, transform: Affine = TRANSFORM, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = values if values.ndim == 3 else values[None]
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=CRS, transform=transform, **shape, **options) as file:
        file.write(bands)
    return path


def write_pair(folder: Path, name: str, prediction: np.ndarray, label: np.ndarray) -> Path:
    """A scene that the model of :func:`work` maps to ``prediction`` (255: nodata), and its label beside it (255: 0, ignored)."""
    scene = np.stack([np.where(prediction == k, 200, 50) for k in range(3)]).astype(np.uint8)
    scene[:, prediction == IGNORE] = 0
    write(folder / f"{name}_label.tif", np.where(label == IGNORE, 0, np.array([3, 7, 1])[label % 3]).astype(np.uint8))
    return write(folder / f"{name}.tif", scene, nodata=0)


def write_mask(path: Path, index: np.ndarray) -> Path:
    with LabelRasterWriter(path, Grid(*index.shape, rasterio.CRS.from_string(CRS), TRANSFORM), TABLE) as writer:
        writer.write(0, index)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workspace whose student answers the class of the brightest band."""
    folder = tmp_path / "work"
    folder.mkdir()
    card = {"format_version": 1, "arch": "linear", "classes": TABLE.to_card(), "ignore": [0]}
    card |= {"bands": [1, 2, 3], "mean": [0, 0, 0], "std": [1, 1, 1]}
    weights = {"weight": np.eye(3, dtype=np.float32)[:, :, None, None], "bias": np.zeros(3, np.float32)}
    save_file(weights, folder / "student.safetensors", metadata={"rsdistill": json.dumps(card)})
    return folder


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a label that agree in two thirds of the pixels, both with holes."""
    prediction, label = lumps(0).copy(), lumps(0).copy()
    label[:, :45] = lumps(1)[:, :45]
    label[20:40, 60:90] = IGNORE
    prediction[:30, 100:] = IGNORE
    return prediction, label


def expected(*pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, object]:
    confusion, boundary = Confusion(3), Boundary(3)
    for prediction, label in pairs:
        confusion.update(prediction, label)
        boundary.start(*label.shape)
        boundary.update(prediction, label)
        boundary.finish()
    return confusion.scores(TABLE.names, boundary).as_dict()


def test_a_model_on_a_scene_gives_the_figures_of_the_whole_arrays(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    heard = Heard()
    result = evaluate([scene], work=work, tile=64, progress=heard)
    wanted = expected(maps)
    assert {key: result.data[key] for key in wanted} == wanted
    assert [path.name for path in result.paths] == ["metrics.json", "report.html"]
    assert json.loads(result.paths[0].read_text()) == result.data
    assert result.data["unpredicted_pixels"] == 30 * 30
    assert heard.warnings == ["900 labelled pixels have no prediction and are left out"]
    assert result.tables[0].rows[-1][:2] == ("mean", f"{100 * wanted['miou']:.1f}")
    page = result.paths[1].read_text(encoding="utf-8")
    assert "student on town" in page
    assert 'data-layer="scene"' in page


def test_the_run_file_repeats_the_run(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    first = evaluate([scene], work=work, out=tmp_path / "first")
    from rsdistill.commands.evaluate import EvaluateConfig

    options = run_options(tmp_path / "first" / "evaluate.run.toml", "evaluate", EvaluateConfig.model_fields)
    again = evaluate(**(options | {"out": tmp_path / "again"}))
    assert again.data == first.data
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["evaluate.run.toml", "metrics.json", "report.html"]


def test_a_mask_gives_what_the_model_that_made_it_gives(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    mask = write_mask(tmp_path / "mask.tif", maps[0])
    by_model = evaluate([scene], work=work, out=tmp_path / "a")
    classes = tmp_path / "classes.toml"
    classes.write_text(TABLE.to_toml())
    by_mask = evaluate([scene], mask=[mask], classes=classes, work=tmp_path / "none", out=tmp_path / "b")
    assert {key: by_mask.data[key] for key in expected(maps)} == {key: by_model.data[key] for key in expected(maps)}


def test_a_mask_knows_its_own_classes(tmp_path: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    mask, truth = write_mask(tmp_path / "mask.tif", maps[0]), write_mask(tmp_path / "truth.tif", maps[1])
    result = evaluate(mask=[mask], labels=[truth], work=tmp_path / "none")
    assert result.data["per_class"] == expected(maps)["per_class"]
    (tmp_path / "mask.tif.aux.xml").unlink()
    bare = evaluate(mask=[mask], labels=[truth], work=tmp_path / "none", overwrite=True)
    assert bare.data["miou"] == pytest.approx(result.data["miou"])
    assert set(bare.data["per_class"]) == {"class 1", "class 3", "class 7"}


def test_several_scenes_are_pooled_and_each_is_listed(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    other = lumps(5, 70, 210), lumps(6, 70, 210)
    scenes = [write_pair(tmp_path, "town", *maps), write_pair(tmp_path, "village", *other)]
    result = evaluate(scenes, work=work)
    assert result.data["confusion"] == expected(maps, other)["confusion"]
    assert result.data["boundary_iou"] == pytest.approx(expected(maps, other)["boundary_iou"])
    assert [one["name"] for one in result.data["scenes"]] == ["town", "village"]
    assert [one["miou"] for one in result.data["scenes"]] == pytest.approx([expected(maps)["miou"], expected(other)["miou"]])


def test_labels_of_another_grid_or_as_polygons_are_brought_to_the_scene(tmp_path: Path, work: Path) -> None:
    prediction = lumps(0, 120, 120, 20)
    scene = write_pair(tmp_path, "town", prediction, prediction)
    coarse = write(tmp_path / "coarse.tif", np.array([3, 7, 1], np.uint8)[prediction[::20, ::20]], TRANSFORM @ Affine.scale(20))
    assert evaluate([scene], labels=[coarse], work=work).data["miou"] == 1
    rows, cols = np.divmod(np.arange(36), 6)
    left, top = 400_000 + 40 * cols, 5_000_000 - 40 * rows
    boxes = shapely.box(left, top - 40, left + 40, top)
    names = np.array(TABLE.names)[prediction[20 * rows, 20 * cols]]
    geopandas.GeoDataFrame({"kind": names}, geometry=boxes, crs=CRS).to_file(tmp_path / "fields.gpkg")
    found = evaluate([scene], labels=[tmp_path / "fields.gpkg"], label_field="kind", work=work, overwrite=True)
    assert found.data["miou"] == 1
    assert sum(one["pixels"] for one in found.data["per_class"].values()) == 120 * 120


def test_a_class_table_in_another_order_changes_only_the_order(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    (tmp_path / "classes.toml").write_text(ClassTable(TABLE.classes[::-1], TABLE.ignore).to_toml())
    result = evaluate([scene], work=work, classes=tmp_path / "classes.toml")
    assert result.data["per_class"] == expected(maps)["per_class"]
    assert result.data["confusion"] == np.array(expected(maps)["confusion"])[::-1, ::-1].tolist()


def test_a_window_is_measured_alone(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    result = evaluate([scene], work=work, window=(10, 20, 100, 90))
    part = tuple(array[10:110, 20:110] for array in maps)
    assert result.data["confusion"] == expected(part)["confusion"]
    assert result.data["boundary_iou"] == pytest.approx(expected(part)["boundary_iou"])


@pytest.fixture
def tiled(tmp_path: Path, work: Path) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The workspace with a tile set of one scene, split by blocks."""
    maps = lumps(8, 512, 512), lumps(9, 512, 512)
    scene = write_pair(tmp_path / "scenes", "town", *maps)
    (tmp_path / "classes.toml").write_text(TABLE.to_toml())
    tile([scene], classes=tmp_path / "classes.toml", work=work, tile=64)
    return work, {"town": maps}


def test_without_scenes_only_pixels_of_the_splits_tiles_count(tiled: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    from rsdistill.geo.tile_index import load_tile_set

    work, maps = tiled
    tiles = load_tile_set(work / "tiles").of_split("val")
    prediction, label = maps["town"]
    inside = np.zeros(label.shape, bool)
    for one in tiles:
        inside[one.window.slices] = True
    assert 0 < inside.mean() < 0.6
    result = evaluate(work=work)
    assert result.data["confusion"] == expected((prediction, np.where(inside, label, IGNORE)))["confusion"]
    assert result.data["split"] == "val"
    with pytest.raises(ConfigError, match="neither SCENES nor --mask"):
        evaluate(work=work, labels=[work], overwrite=True)


def test_a_scene_that_was_trained_on_is_said_so(tiled: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]], tmp_path: Path) -> None:
    work, _ = tiled
    heard = Heard()
    evaluate([tmp_path / "scenes" / "town.tif"], work=work, progress=heard)
    assert len(heard.warnings) == 1
    assert "pixels of town were trained on" in heard.warnings[0]


def test_masks_are_measured_without_torch(tmp_path: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    mask, truth = write_mask(tmp_path / "mask.tif", maps[0]), write_mask(tmp_path / "truth.tif", maps[1])
    code = (
        f"import sys; from rsdistill.commands.evaluate import evaluate; r = evaluate(mask=[{str(mask)!r}], labels=[{str(truth)!r}], "
        f"work={str(tmp_path)!r}); assert 'torch' not in sys.modules; print(r.data['miou'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(expected(maps)["miou"])


def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    bare = write(tmp_path / "bare.tif", np.full((3, 20, 20), 9, np.uint8))
    mask = write_mask(tmp_path / "mask.tif", maps[0])
    (tmp_path / "two.toml").write_text(ClassTable(TABLE.classes[:2], (0, 1)).to_toml())
    empty = write(tmp_path / "empty.tif", np.zeros(maps[0].shape, np.uint8))
    with pytest.raises(LabelError, match=r"bare\.tif has no label"):
        evaluate([scene, bare], work=work)
    with pytest.raises(ConfigError, match="exclude each other"):
        evaluate([scene], work=work, mask=[mask], model="student")
    with pytest.raises(ConfigError, match="1 scenes and 2 masks"):
        evaluate([scene], work=work, mask=[mask, mask])
    with pytest.raises(ClassTableError, match=r"has classes 3, 7; .*student\.safetensors answers 1, 3, 7"):
        evaluate([scene], work=work, classes=tmp_path / "two.toml")
    with pytest.raises(MaskError, match="holds 1, which is no class"):
        evaluate(mask=[mask], labels=[tmp_path / "town_label.tif"], work=work, classes=tmp_path / "two.toml")
    with pytest.raises(LabelError, match=r"no labelled pixel with a prediction in .*empty\.tif"):
        evaluate([scene], labels=[empty], work=work)
    with pytest.raises(TileSetError, match="holds no tileset"):
        evaluate(work=work)
    with pytest.raises(ConfigError, match="--mask and --seam exclude"):
        evaluate(mask=[mask], labels=[empty], work=work, seam=True)
    assert not (work / "evaluation").exists()


def test_results_are_replaced_only_when_asked(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    evaluate([scene], work=work)
    with pytest.raises(OutputExistsError, match=r"metrics\.json exists"):
        evaluate([scene], work=work)
    evaluate([scene], work=work, overwrite=True)


def test_a_network_that_sees_single_pixels_leaves_no_seams(tmp_path: Path, work: Path, maps: tuple[np.ndarray, np.ndarray]) -> None:
    scene = write_pair(tmp_path, "town", *maps)
    result = evaluate([scene], work=work, tile=64, seam=True)
    assert result.data["seam"] == {"near": 0, "elsewhere": 0, "distance": 16}
    assert "Seams: 0.0" in result.paths[1].read_text(encoding="utf-8")


def test_a_network_that_looks_around_differs_most_near_the_cuts(tmp_path: Path, work: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 3, (300, 280), dtype=np.uint8)
    scene = write_pair(tmp_path, "town", noise, noise)
    torch.manual_seed(0)
    network = build_network("tiny", {}, 3, 3).eval()
    card = ModelCard(arch="tiny", classes=TABLE.to_card(), ignore=(0,), bands=(1, 2, 3), mean=(80,) * 3, std=(60,) * 3)
    save_model(work / "student.safetensors", network, card)
    seam = evaluate([scene], work=work, tile=96, margin=0, seam=True).data["seam"]
    assert seam["near"] > 2 * seam["elsewhere"]
    wide = evaluate([scene], work=work, tile=96, margin=32, seam=True, overwrite=True).data["seam"]
    assert wide["near"] < seam["near"] / 2
