"""Which windows suit a model, and what is said of files that are none."""

from pathlib import Path

import pytest

from rsdistill.errors import CheckpointError, ConfigError
from rsdistill.inference.loading import Model, Windows, find_model, load, read_model_card
from rsdistill.models import ModelCard


def model(stride=32, fixed=None, **card):
    usual = {"arch": "tiny", "classes": [{"id": 1, "name": "a"}], "bands": (1,), "mean": (0.0,), "std": (1.0,)}
    return Model(Path("m.safetensors"), ModelCard(**usual | card), stride, fixed)


@pytest.mark.parametrize(
    ("given", "windows"),
    [
        (model(tile=256, margin=32), Windows(1024, 32)),
        (model(tile=384, margin=48), Windows(1152, 48)),
        (model(arch="pspnet", stride=8, tile=256, margin=32), Windows(256, 32)),
        (model(tile=50, margin=8), Windows(1056, 8)),
        (model(), Windows(1216, 64)),  # (1216 / (1216 - 128))² < 1.25
        (model(stride=1, arch="linear"), Windows(1024, 0)),
        (model(stride=512, fixed=512, tile=256, margin=32), Windows(512, 32)),
        (model(stride=32, fixed=32, margin=64), Windows(32, 8)),
    ],
)
def test_windows_are_large_and_fit_the_network(given, windows):
    assert given.windows(None, None) == windows


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="tile 100 is not a multiple of 32"):
        model().windows(100, None)
    with pytest.raises(ConfigError, match="margin 32 leaves no core"):
        model().windows(64, 32)
    with pytest.raises(ConfigError, match="takes tiles of 64 pixels, not 128"):
        model(64, 64).windows(128, None)


def test_files_that_are_no_models_are_named(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "m.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match=r"m\.onnx is not an ONNX model"):
        load(tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match="no model"):
        read_model_card(tmp_path / "none.onnx")
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the workspace .* holds other"):
        find_model(tmp_path, Path("teacher"))


def test_an_onnx_graph_of_another_kind_is_named(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    for name, shape in (("loose", ["n", 3, "h", "w"]), ("fixed", ["n", 3, 32, 32])):
        values = [onnx.helper.make_tensor_value_info(which, kind, shape) for which in ("image", "same")]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["same"])], "g", values[:1], values[1:])
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(made, tmp_path / f"{name}.onnx")
    with pytest.raises(CheckpointError, match="not one stack of square tiles"):
        load(tmp_path / "loose.onnx")
    with pytest.raises(CheckpointError, match="holds no 'rsdistill' card"):
        load(tmp_path / "fixed.onnx")


def test_a_network_is_built_on_its_own_threads(tmp_path, monkeypatch):
    """Processes that each took all cores for it waited for each other."""
    import torch

    from rsdistill.models import build_network, checkpoints, save_model

    card = ModelCard(arch="tiny", classes=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], bands=(1,), mean=(0.0,), std=(1.0,))
    save_model(tmp_path / "m.safetensors", build_network("tiny", {}, 1, 2), card)
    seen = []
    real = checkpoints.build_network
    monkeypatch.setattr(checkpoints, "build_network", lambda *args: (seen.append(torch.get_num_threads()), real(*args))[1])
    torch.set_num_threads(2)
    load(tmp_path / "m.safetensors", 1)
    assert set(seen) == {1}
