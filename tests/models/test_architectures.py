"""Every architecture by its name: it builds, answers, is kept in a file and comes back the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rsdistill.batches import Context, Segmentation
from rsdistill.errors import ConfigError
from rsdistill.models import ARCHITECTURES, Network, build_network, load_model, save_model
from rsdistill.models.card import ModelCard

Make = Callable[..., ModelCard]


def look(network: Network, height: int = 64, width: int = 96) -> Segmentation:
    bands = next(parameter.shape[1] for parameter in network.parameters() if parameter.ndim == 4)
    generator = torch.Generator().manual_seed(5)
    context = Context(
        torch.randn(1, bands, 40, 50, generator=generator),
        torch.ones(1, 40, 50, dtype=torch.bool),
        torch.tensor([[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.7, 0.8]]),
        torch.tensor([0, 0]),
    )
    image = torch.randn(2, bands, height, width, generator=generator)
    with torch.no_grad():
        return network(image, context if network.needs_context else None)


@pytest.mark.parametrize(("bands", "classes"), [(1, 2), (3, 6), (13, 2)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_comes_back_from_its_file(arch: str, bands: int, classes: int, card: Make, tmp_path: Path) -> None:
    network = build_network(arch, {}, bands, classes).eval()
    answer = look(network)
    assert answer.logits.shape[:2] == (2, classes)
    assert answer.logits.shape[-2:] == answer.features.shape[-2:]
    assert 64 % answer.logits.shape[-2] == 0
    save_model(tmp_path / "m.safetensors", network, card(arch, bands, classes))
    loaded, read = load_model(tmp_path / "m.safetensors")
    assert not loaded.training
    assert read.arch == arch
    assert read.arch_args == network.args.model_dump(mode="json")
    assert torch.equal(look(loaded).logits, answer.logits)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_features_are_what_the_classifier_reads(arch: str) -> None:
    network = build_network(arch, {}, 3, 4).eval()
    answer = look(network)
    classifier = network if arch == "linear" else network.classifier
    read = torch.einsum("kchw,bcyx->bkyx", classifier.weight, answer.features) if classifier.weight.shape[-1] == 1 else None
    if read is None:
        read = torch.nn.functional.conv2d(answer.features, classifier.weight, padding=classifier.weight.shape[-1] // 2)
    assert torch.allclose(answer.logits, read + classifier.bias[:, None, None], atol=1e-4)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "linear"])
def test_every_parameter_learns_from_what_training_looks_at(arch: str) -> None:
    network = build_network(arch, {}, 3, 4).train()
    context = Context(torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool), torch.rand(2, 4).sort().values, torch.arange(2))
    image = torch.randn(2, 3, 64, 64)
    if hasattr(network, "training_outputs"):
        branches = network.training_outputs(image, context)
        maps = [branches.fused.logits, branches.fused.aux, branches.global_.logits]
    else:
        answer = network(image)
        maps = [answer.logits] if answer.aux is None else [answer.logits, answer.aux]
    sum(m.square().sum() for m in maps).backward()
    unmoved = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    # segmentation-models-pytorch drops nothing of an encoder that it does not read.
    assert not {name for name in unmoved if not name.startswith("encoder.")}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_stages_run_from_fine_to_coarse(arch: str) -> None:
    network = build_network(arch, {}, 3, 4).eval()
    heights = [stage.shape[-2] for stage in look(network).stages]
    assert heights == sorted(heights, reverse=True)
    assert arch == "linear" or len(heights) == 4


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_memory_layout_does_not_change_the_answer(arch: str) -> None:
    network = build_network(arch, {}, 3, 4).eval()
    plain = look(network).logits
    turned = look(network.to(memory_format=torch.channels_last)).logits
    assert torch.allclose(plain, turned, atol=1e-3, rtol=1e-3)


def test_an_unknown_architecture_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ginet'") as caught:
        build_network("ginett", {}, 3, 2)
    assert all(arch in caught.value.hint for arch in ARCHITECTURES)


@pytest.mark.parametrize("arch", ["fpn", "deeplabv3plus", "segformer"])
def test_baselines_name_an_encoder_that_no_library_has(arch: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mobilenet_v2'"):
        build_network(arch, {"encoder": "mobilenet_v22"}, 3, 2)


def test_baselines_take_encoders_of_both_libraries() -> None:
    for encoder in ("resnet18", "mobilenetv4_conv_small_035"):
        assert look(build_network("fpn", {"encoder": encoder}, 4, 2).eval()).logits.shape == (2, 2, 16, 24)


@pytest.mark.parametrize("arch", ["fpn", "deeplabv3plus", "segformer", "ginet", "small"])
def test_no_network_has_norms_that_make_seams(arch: str) -> None:
    kinds = {type(module).__name__ for module in build_network(arch, {}, 3, 2).modules()}
    assert not kinds & {"GroupNorm", "GroupNormAct", "InstanceNorm2d"}


def test_building_is_repeatable_and_leaves_meta_networks_without_memory() -> None:
    torch.manual_seed(7)
    one = build_network("small", {}, 3, 2)
    torch.manual_seed(7)
    other = build_network("small", {}, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
