"""Pretrained encoder weights: matched by name or by order, folded to the bands, and refused rather than half loaded."""

import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import rsdistill.models.published as published
import rsdistill.models.weights as weights
from rsdistill.errors import ConfigError, WeightsError
from rsdistill.models import build_network, load_encoder_weights

DATA = Path(os.environ.get("RSDISTILL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "weights"
MOBILENET = DATA / "mobilenet_v2_imagenet_from_coral_int8_fp16.safetensors"
SQUEEZENET = DATA / "squeezenet1_1_imagenet_fp16.safetensors"
given_weights = pytest.mark.skipif(not MOBILENET.is_file(), reason=f"no encoder weights under {DATA}; set RSDISTILL_DATA")

LIGHT = {"encoder": "mobilenetv4_conv_small_035"}


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Tensor]]]:
    """Write the random state of an RGB encoder of ``tiny`` under other names, in their order; return file and state."""

    def make(rename: Callable[[str, int], str] = lambda name, _: name, suffix: str = ".safetensors") -> tuple[Path, dict[str, Tensor]]:
        torch.manual_seed(9)
        state = build_network("tiny", LIGHT, 3, 2).encoder.body.state_dict()
        state = {name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        renamed = {rename(name, number): tensor for number, (name, tensor) in enumerate(state.items())}
        path = tmp_path / f"weights{suffix}"
        save_file(renamed, path) if suffix == ".safetensors" else torch.save(renamed, path)
        return path, state

    return make


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def test_none_leaves_random_numbers_and_says_so() -> None:
    network = build_network("tiny", LIGHT, 3, 2)
    loaded = load_encoder_weights(network, "none")
    assert "random" in str(loaded)
    assert not network.pretrained


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_with_the_encoders_own_names(trained: Callable, suffix: str) -> None:
    path, state = trained(suffix=suffix)
    network = build_network("tiny", LIGHT, 3, 2)
    loaded = load_encoder_weights(network, str(path))
    assert loaded.matched == loaded.total == len(floats(state))
    assert str(loaded) == f"encoder weights: {loaded.total} of {loaded.total} tensors from {path}"
    assert network.pretrained
    found = network.encoder.body.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in floats(state).items())


def test_weights_with_other_names_in_the_same_order(trained: Callable) -> None:
    path, state = trained(lambda name, number: f"features.{number // 5}.{number % 5}.{name.rpartition('.')[2]}")
    network = build_network("tiny", LIGHT, 3, 2)
    load_encoder_weights(network, str(path))
    found = network.encoder.body.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in floats(state).items())


def test_both_encoders_of_a_ginet_are_filled(trained: Callable) -> None:
    path, state = trained()
    network = build_network("ginet", LIGHT, 3, 2)
    assert load_encoder_weights(network, str(path)).matched == 2 * len(floats(state))
    for encoder in network.encoders:
        assert torch.equal(encoder.body.conv_stem.weight, state["conv_stem.weight"])


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_the_first_layer_answers_equal_bands_as_strongly_as_before(trained: Callable, bands: int) -> None:
    path, state = trained()
    network = build_network("tiny", LIGHT, bands, 2)
    load_encoder_weights(network, str(path))
    kernel, before = network.encoder.body.conv_stem.weight, state["conv_stem.weight"]
    assert kernel.shape[1] == bands
    for band in range(bands):
        expected = before[:, band % 3] * 3 / bands if bands > 3 else before.mean(1) * 3 / bands
        assert torch.allclose(kernel[:, band], expected, atol=1e-5)


def test_weights_of_another_encoder_are_refused_and_nothing_is_changed(trained: Callable) -> None:
    path, _ = trained()
    network = build_network("base", {}, 3, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"fit \d+ of the \d+ tensors of encoder mobilenetv2_100") as caught:
        load_encoder_weights(network, str(path))
    assert caught.value.exit_code == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.pretrained


def test_weights_that_lack_a_twentieth_are_refused(trained: Callable) -> None:
    path, state = trained()
    names = list(floats(state))
    for lacking, fits in ((len(names) // 25, True), (len(names) // 10, False)):
        save_file({name: state[name] for name in names[lacking:]}, path)
        network = build_network("tiny", LIGHT, 3, 2)
        if fits:
            assert load_encoder_weights(network, str(path)).matched == len(names) - lacking
        else:
            with pytest.raises(WeightsError, match=f"fit {len(names) - lacking} of the {len(names)}"):
                load_encoder_weights(network, str(path))


def test_a_network_without_encoder_takes_no_weights(trained: Callable) -> None:
    with pytest.raises(ConfigError, match="Linear"):
        load_encoder_weights(build_network("linear", {}, 3, 2), str(trained()[0]))


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="cannot read"):
        load_encoder_weights(build_network("tiny", LIGHT, 3, 2), "w.pt")
    assert not (tmp_path / "exploded").exists()


def test_an_archive_that_swells_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    monkeypatch.setattr(weights, "MAX_PICKLE_BYTES", 1 << 19)
    assert (tmp_path / "w.pth").stat().st_size < 1 << 12
    with pytest.raises(WeightsError, match="unpack to more"):
        load_encoder_weights(build_network("tiny", LIGHT, 3, 2), str(tmp_path / "w.pth"))


@pytest.mark.parametrize(("name", "content"), [("w.safetensors", b"nonsense" * 9), ("w.pt", b"nonsense"), ("w.bin", b""), (None, b"")])
def test_what_is_not_weights_is_refused(tmp_path: Path, name: str | None, content: bytes) -> None:
    path = tmp_path / (name or "missing.safetensors")
    if name:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=path.name) as caught:
        load_encoder_weights(build_network("tiny", LIGHT, 3, 2), str(path))
    assert "--weights none" in caught.value.hint


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the network was used"))


@pytest.mark.parametrize("arch", ["small", "base", "ginet", "pspnet", "fpn", "segformer"])
def test_offline_fails_at_once_and_names_what_was_wanted(empty_cache: None, arch: str) -> None:
    network = build_network(arch, {}, 3, 2)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="not in the cache") as caught:
        load_encoder_weights(network, "imagenet", offline=True)
    assert time.monotonic() - start < 2
    assert network.encoders[0].name in str(caught.value)


def test_the_hubs_own_switch_is_obeyed(empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="not to be used"):
        load_encoder_weights(build_network("base", {}, 3, 2), "imagenet")


class Hub(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """Serve a hub on this machine; its status may be set."""
    handler = type("Handler", (Hub,), {})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def test_a_hub_that_answers_is_asked(hub: type[Hub], trained: Callable, empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = trained()
    monkeypatch.setattr(published, "hub_weights", lambda *_: ("timm/some", "model.safetensors", "v1"))
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *place, **more: asked.append((place, more)) or str(path))
    for hub.status in (200, 404):
        network = build_network("tiny", LIGHT, 3, 2)
        load_encoder_weights(network, "imagenet")
        assert torch.equal(network.encoder.body.conv_stem.weight, state["conv_stem.weight"])
    assert asked == 2 * [(("timm/some", "model.safetensors"), {"revision": "v1"})]


def test_a_hub_that_fails_is_not_asked(hub: type[Hub], empty_cache: None) -> None:
    hub.status = 503
    with pytest.raises(WeightsError, match="does not answer"):
        load_encoder_weights(build_network("base", {}, 3, 2), "imagenet")


def test_a_download_that_breaks_is_one_line(hub: type[Hub], empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise OSError("connection reset\nand much more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(WeightsError, match=r"cannot fetch timm/mobilenetv2_100.*: connection reset$"):
        load_encoder_weights(build_network("base", {}, 3, 2), "imagenet")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_hub_that_does_not_answer_costs_less_than_two_seconds(empty_cache: None, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    released = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        if hangs:
            released.wait(20)
        raise OSError("Temporary failure in name resolution")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", look_up)
    network = build_network("base", {}, 3, 2)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="does not answer"):
        load_encoder_weights(network, "imagenet")
    assert time.monotonic() - start < 2
    released.set()


def test_cached_weights_are_used_without_the_network(trained: Callable, empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = trained()
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *place, **_: asked.append(place) or str(path))
    monkeypatch.setattr(published, "hub_weights", lambda *_: ("timm/some", "model.safetensors", None))
    network = build_network("tiny", LIGHT, 3, 2)
    load_encoder_weights(network, "imagenet", offline=True)
    assert asked == [("timm/some", "model.safetensors")]
    assert torch.equal(network.encoder.body.conv_stem.weight, state["conv_stem.weight"])


def test_an_encoder_without_published_weights_says_so(empty_cache: None) -> None:
    with pytest.raises(WeightsError, match="no ImageNet weights for encoder mobilenetv4_conv_small_035"):
        load_encoder_weights(build_network("tiny", {}, 3, 2), "imagenet")


# --- real weights -----------------------------------------------------------------------------------------------------


@given_weights
@pytest.mark.parametrize(("arch", "encoders"), [("ginet", 2), ("base", 1), ("local", 1), ("fpn", 1), ("deeplabv3plus", 1)])
def test_the_given_mobilenet_fills_every_tensor(arch: str, encoders: int) -> None:
    network = build_network(arch, {}, 3, 2)
    loaded = load_encoder_weights(network, str(MOBILENET))
    assert loaded.matched == loaded.total
    assert loaded.total == encoders * (260 if arch in {"fpn", "deeplabv3plus"} else 255)


@given_weights
def test_matching_by_name_and_by_order_give_the_same_encoder() -> None:
    by_name, by_order = build_network("fpn", {}, 3, 2).eval(), build_network("base", {}, 3, 2).eval()
    for network in (by_name, by_order):
        load_encoder_weights(network, str(MOBILENET))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, other = by_name.encoder(image)[2:5], by_order.encoder(image)[:3]
    for a, b in zip(one, other, strict=True):
        assert a.std() > 0.1
        assert torch.allclose(a, b, atol=1e-4)


@given_weights
def test_the_given_squeezenet_fits_no_mobilenet() -> None:
    with pytest.raises(WeightsError, match="fit 0 of the 255"):
        load_encoder_weights(build_network("base", {}, 3, 2), str(SQUEEZENET))


# --- published weights by name ----------------------------------------------------------------------------------------


def test_a_tag_of_timm_names_other_weights_of_the_same_encoder(
    trained: Callable, empty_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *place, **_: asked.append(place) or None)
    network = build_network("base", {"encoder": "resnet18"}, 3, 2)
    for spec in ("timm:a1_in1k", "timm:resnet18.a1_in1k"):
        with pytest.raises(WeightsError, match=r"weights .*a1_in1k of resnet18 .* not to be used"):
            load_encoder_weights(network, spec, offline=True)
    assert asked == 2 * [("timm/resnet18.a1_in1k", "model.safetensors")]
    with pytest.raises(WeightsError, match="no weights timm:nobody_in1k for encoder resnet18"):
        load_encoder_weights(network, "timm:nobody_in1k", offline=True)


SENTINEL = "torchgeo:ResNet18_Weights.SENTINEL2_ALL_MOCO"


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("the network was used"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_weights_of_torchgeo_bring_their_normalisation(torch_cache: Path) -> None:
    network = build_network("base", {"encoder": "resnet18"}, 13, 2)
    state = {name: torch.randn_like(tensor) for name, tensor in floats(network.encoder.body.state_dict()).items()}
    torch.save(state, torch_cache / "resnet18_sentinel2_all_moco-59bfdff9.pth")
    loaded = load_encoder_weights(network, SENTINEL, offline=True)
    assert (loaded.mean, loaded.std) == ((0.0,) * 13, (10000.0,) * 13)
    assert torch.equal(network.encoder.body.conv1.weight, state["conv1.weight"])


def test_two_normalisations_in_a_row_are_one() -> None:
    from torchgeo.models import get_weight

    mean, std = published._normalisation(get_weight("ResNet50_Weights.FMOW_RGB_GASSL").transforms, 3)
    pixels = torch.tensor([10.0, 100.0, 250.0], dtype=torch.float64)
    wanted = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose((pixels - torch.tensor(mean)) / torch.tensor(std), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "bands", "fault", "says", "hint"),
    [
        (SENTINEL, 13, WeightsError, "not to be used", "--weights none"),
        (SENTINEL, 4, ConfigError, "read 13 bands, the tile set has 4", "B1, B2, B3"),
        ("torchgeo:ResNet50_Weights.SENTINEL2_ALL_MOCO", 13, WeightsError, "of a resnet50, not of resnet18", "--encoder resnet50"),
        ("torchgeo:ResNet18_Weights.SENTINEL2_ALL_MOCCO", 13, WeightsError, "'ResNet18_Weights.SENTINEL2_ALL_MOCO'", "LANDSAT_OLI_SR_MOCO"),
    ],
)
def test_weights_of_torchgeo_that_do_not_fit_are_refused_at_once(
    torch_cache: Path, spec: str, bands: int, fault: type[Exception], says: str, hint: str
) -> None:
    network = build_network("base", {"encoder": "resnet18"}, bands, 2)
    with pytest.raises(fault, match=says) as caught:
        load_encoder_weights(network, spec, offline=True)
    assert hint in caught.value.hint
