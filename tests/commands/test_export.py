"""``export``: the graph answers as the network does, says what its clients read, and is refused where it could not work."""

import hashlib
import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch

from rsdistill.commands.evaluate import evaluate
from rsdistill.commands.export import export
from rsdistill.commands.predict import predict
from rsdistill.commands.tile import tile
from rsdistill.errors import CheckpointError, ConfigError, MissingExtraError, OutputExistsError, TileSetError
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.inference.exporting import metadata
from rsdistill.methods.base import upsample
from rsdistill.models import ModelCard, build_network, load_model, save_model

MEAN, STD = (100.0, 110.0, 90.0), (40.0, 35.0, 30.0)


def save(path, arch="tiny", **card):
    torch.manual_seed(3)
    network = build_network(arch, {}, 3, 4)
    if arch == "linear":
        torch.nn.init.normal_(network.weight)
    classes = [{"id": 10 * i, "name": f"class {i}", "color": "#11aa33"} for i in range(4)]
    usual = {"arch": arch, "classes": classes, "bands": (3, 2, 1), "mean": MEAN, "std": STD, "tile": 64, "margin": 8}
    save_model(path, network, ModelCard(**{**usual, **card}))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = save(folder / "tiny.safetensors", pixel_size=(0.5, 0.5), method="kd", seed=7)
    return model, export(model)


def pixels(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side)).astype(np.float32)


def test_onnx_takes_raw_pixels_by_255_and_answers_with_probabilities(tiny):
    model, result = tiny
    network, _ = load_model(model)
    raw = pixels(5, 64)  # a batch that is not the example's
    image = (torch.from_numpy(raw) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.inference_mode():
        wanted = upsample(network(image).logits, (64, 64)).softmax(1).numpy()
    session = onnxruntime.InferenceSession(result.paths[0])
    (given,) = session.run(None, {"image": raw / 255})
    assert np.abs(given - wanted).max() < 1e-5
    assert given.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (given.argmax(1) == wanted.argmax(1)).mean() > 0.9999
    assert result.data["parity"] < 1e-5


def test_onnx_runs_in_old_clients(tiny):
    graph = onnx.load(tiny[1].paths[0])
    assert graph.ir_version == 9
    assert [(one.domain, one.version) for one in graph.opset_import if not one.domain] == [("", 18)]
    (given,), (answer,) = graph.graph.input, graph.graph.output
    sides = [[axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in (given, answer)]
    assert sides == [[0, 3, 64, 64], [0, 4, 64, 64]]  # 0: any number of tiles


def test_onnx_names_nothing_of_this_machine(tiny):
    content = tiny[1].paths[0].read_bytes()
    assert not re.search(rb"site-packages|\.py\b|/home/|/tmp/", content)


def test_metadata_that_clients_read(tiny):
    properties = {one.key: one.value for one in onnx.load(tiny[1].paths[0]).metadata_props}
    values = {key: json.loads(text) for key, text in properties.items()}
    assert values["model_type"] == "Segmentor"
    assert values["class_names"] == {str(i): f"class {i}" for i in range(4)}
    assert values["tile_size"] == values["tiles_size"] == 64
    assert values["tiles_overlap"] == 50
    assert values["resolution"] == 50
    assert values["standardization_mean"] == [0, 0, 0]
    assert values["standardization_std"] == [1, 1, 1]
    assert ModelCard.model_validate(values["rsdistill"]).bands == (3, 2, 1)


@pytest.mark.parametrize(
    ("side", "margin", "percent"),
    [
        (512, 64, 25),
        (1024, 64, 25),  # 12.5 would do, but whole per cents then end between strides
        (640, 32, 10),
        (640, 33, 15),
        (224, 28, 29),
        (96, 20, 42),  # no step of 64 holds the margin: it is what counts
        (512, 250, 50),
    ],
)
def test_clients_are_told_to_step_by_whole_strides(side, margin, percent):
    card = ModelCard(arch="tiny", classes=[{"id": 0, "name": "a", "color": "#11aa33"}], bands=(1,), mean=(0,), std=(1,), margin=margin)
    given = json.loads(metadata(card, side, 32)["tiles_overlap"])
    assert given == percent
    assert side * given // 100 >= min(2 * margin, side // 2)


def test_stac_item_describes_the_file(tiny):
    out, item = tiny[1].paths
    content = json.loads(item.read_text())
    assert item.name == "tiny.onnx.stac.json"
    assert content["properties"]["mlm:framework"] == "ONNX"
    assert content["properties"]["mlm:input"][0]["input"]["shape"] == [-1, 3, 64, 64]
    classes = content["properties"]["mlm:output"][0]["classification:classes"]
    assert [(one["value"], one["name"], one["color_hint"]) for one in classes] == [(i, f"class_{i}", "11AA33") for i in range(4)]
    asset = content["assets"]["model"]
    assert asset["file:checksum"] == "1220" + hashlib.sha256(out.read_bytes()).hexdigest()
    assert asset["mlm:artifact_type"] == "onnx"


def test_export_that_answers_otherwise_is_thrown_away(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rsdistill.inference.exporting.onnx_answer", lambda path, image: np.full((3, 4, 64, 64), 0.25, np.float32))
    with pytest.raises(CheckpointError, match=r"x\.onnx differs from torch by"):
        export(tiny[0], out=tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_archive_answers_as_the_network(tmp_path):
    model = save(tmp_path / "linear.safetensors", "linear")
    result = export(model, out=tmp_path / "deep" / "linear.pt2")
    network, card = load_model(model)
    raw = torch.from_numpy(pixels(2, 64))
    with torch.inference_mode():
        wanted = network((raw - torch.tensor(card.mean).view(1, 3, 1, 1)) / torch.tensor(card.std).view(1, 3, 1, 1)).logits.softmax(1)
        given = torch.export.load(result.paths[0]).module()(raw / 255)
    assert torch.allclose(given, wanted, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["linear.pt2", "linear.pt2.run.toml", "linear.pt2.stac.json"]


def test_default_model_is_the_workspace_student(tmp_path):
    save(tmp_path / "student.safetensors", "linear", tile=40)
    result = export(work=tmp_path)
    assert result.paths[0] == tmp_path / "student.onnx"
    assert result.data["tile"] == 40
    other = export("student", work=tmp_path, out=tmp_path / "other.onnx", tile=24)
    assert other.data["tile"] == 24


def test_tile_without_a_card_fits_the_stride(tmp_path):
    model = save(tmp_path / "m.safetensors", "linear", tile=None, margin=None)
    assert export(model, out=tmp_path / "m.pt2").data["tile"] == 512


def test_tile_that_does_not_fit_the_stride_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="tile 65 is not a multiple of 32"):
        export(tiny[0], out=tmp_path / "x.onnx", tile=65)
    assert not list(tmp_path.iterdir())


def test_network_that_reads_context_is_refused(tmp_path):
    model = save(tmp_path / "teacher.safetensors", "ginet")
    with pytest.raises(CheckpointError, match="reads the whole scene") as refused:
        export(model)
    assert "distill" in refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_existing_results_stand(tiny):
    before = tiny[1].paths[0].read_bytes()
    with pytest.raises(OutputExistsError, match=r"tiny\.onnx exists"):
        export(tiny[0])
    assert tiny[1].paths[0].read_bytes() == before


def test_unknown_suffix_and_missing_model(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"no writer for '\.pb'"):
        export(tiny[0], out=tmp_path / "x.pb")
    with pytest.raises(CheckpointError, match="student"):
        export(work=tmp_path)


def test_missing_extra_says_what_to_install(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="onnxruntime") as missing:
        export(tiny[0], out=tmp_path / "x.onnx")
    assert missing.value.hint == "pip install 'rsdistill[onnx]'"


# --- whole scenes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a workspace with a drawn scene, tiles and an untrained student, whose answers are nowhere near a tie."""
    folder = tmp_path_factory.mktemp("work")
    drawn = write_land_cover(folder, size=384, seed=3)
    tile(scenes=drawn.scene, labels=drawn.labels, classes=drawn.classes, work=folder / "work", tile=64)
    torch.manual_seed(3)
    classes = [dict(one) for one in load_tile_set(folder / "work" / "tiles").card.classes]
    network = build_network("tiny", {}, 3, len(classes))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    made = {"tile": 128, "margin": 16, "method": "kd", "teachers": ("ab" * 32,)}
    card = ModelCard(arch="tiny", classes=classes, bands=(1, 2, 3), mean=MEAN, std=STD, **made)
    save_model(folder / "work" / "student.safetensors", network, card)
    return folder


def read(path):
    with rasterio.open(path) as raster:
        return raster.read(1)


def test_an_exported_student_maps_a_scene_as_torch_does(work):
    export(work=work / "work", tile=128)
    for name, model in (("torch", "student"), ("onnx", work / "work" / "student.onnx")):
        predict(work / "scene.tif", out=[work / f"{name}.tif"], work=work / "work", model=model, tile=128, margin=16)
    torchs, onnxs = read(work / "torch.tif"), read(work / "onnx.tif")
    assert len(np.unique(torchs)) > 2
    assert (torchs == onnxs).mean() >= 0.999


def test_int8_says_what_it_costs(work):
    result = export(work=work / "work", out=work / "small.onnx", tile=128, int8=True)
    data = result.data
    assert data["miou_cost"] == pytest.approx(data["miou"] - data["miou_int8"])
    plain = evaluate(work=work / "work", tile=128, out=work / "evaluation").data["miou"]
    assert data["miou"] == pytest.approx(plain, abs=0.002)
    graph = onnx.load(work / "small.onnx")
    assert graph.ir_version == 9
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    fed = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    assert convolutions
    assert all(set(node.input[:2]) <= fed for node in convolutions)
    assert {one.key: one.value for one in graph.metadata_props} == {
        one.key: one.value for one in onnx.load(work / "work" / "student.onnx").metadata_props
    }
    raw = pixels(2, 128)
    graphs = work / "work" / "student.onnx", work / "small.onnx"
    exact, small = (onnxruntime.InferenceSession(path).run(None, {"image": raw / 255})[0] for path in graphs)
    assert small.shape == exact.shape
    assert np.abs(small - exact).mean() < 0.1


def test_int8_is_refused_where_it_cannot_be(work, tmp_path):
    with pytest.raises(ConfigError, match=r"--int8 makes \.onnx, not pt2"):
        export(work=work / "work", out=tmp_path / "x.pt2", int8=True)
    with pytest.raises(TileSetError):
        export(work=work / "work", out=tmp_path / "x.onnx", int8=True, tiles=tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_hub_folder_tells_what_the_model_is(work):
    evaluate(work=work / "work", overwrite=True)
    folder = export(work=work / "work", format="hub").paths[0]
    assert folder == work / "work" / "student-hub"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again, card = load_model(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["mean"] == list(card.mean)
    page = (folder / "README.md").read_text()
    with rasterio.open(work / "scene.tif") as scene:
        assert scene.crs.to_string() in page
    operations = export(work=work / "work", format="hub", overwrite=True).data["operations"]
    assert f"{operations / 1e9:.2f} GFLOP" in page
    assert f"{sum(p.numel() for p in again.parameters()) / 1e6:.2f} M" in page
    figures = json.loads((work / "work" / "evaluation" / "metrics.json").read_text())
    for one in card.classes:
        iou = figures["per_class"][one["name"]]["iou"]
        assert f"| {one['id']} | {one['name']} | {one['color']} | {'–' if iou is None else f'{100 * iou:.1f}'} |" in page
    assert "distilled by `kd` from a teacher with the digest abababababab" in page


def test_a_teacher_goes_into_a_hub_folder_though_not_into_a_graph(tmp_path):
    model = save(tmp_path / "teacher.safetensors", "ginet")
    folder = export(model, format="hub", work=tmp_path).paths[0]
    page = (folder / "README.md").read_text()
    assert "cannot be exported to ONNX" in page
    assert "It was not measured" in page
    with pytest.raises(OutputExistsError):
        export(model, format="hub", work=tmp_path)
