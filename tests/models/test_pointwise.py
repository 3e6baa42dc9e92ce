import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from rsdistill.inference.graphs import NetworkGraphs
from rsdistill.models import ModelCard, build_network
from rsdistill.models.pointwise import quicken


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def slow_calls(network, image):
    with profile(activities=[ProfilerActivity.CPU]) as record, torch.inference_mode():
        network(image)
    return sum("slow_conv" in event.name for event in record.events())


@pytest.mark.parametrize("arch", ["small", "base"])
def test_one_thread_gets_the_fast_code(arch, image):
    network = build_network(arch, {}, 3, 5).eval()
    assert slow_calls(network, image) > 0
    quicken(network, "cpu")
    assert slow_calls(network, image) == 0


def test_answers_stay(image):
    network = build_network("small", {}, 3, 5).double().eval()
    with torch.inference_mode():
        before = network(image.double()).logits
        quicken(network, "cpu")
        torch.testing.assert_close(network(image.double()).logits, before, rtol=1e-12, atol=1e-12)


def test_gradients_stay(image):
    network = build_network("small", {}, 3, 5).double().eval()

    def gradients():
        network.zero_grad()
        network(image.double()).logits.square().mean().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    before = gradients()
    quicken(network, "cpu")
    torch.testing.assert_close(gradients(), before, rtol=1e-10, atol=1e-12)


def test_a_graph_for_others_is_plain():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    network = build_network("tiny", {}, 3, 2).eval()
    quicken(network, "cpu")
    classes = [{"id": index, "name": str(index), "color": "#000000"} for index in range(2)]
    card = ModelCard(arch="tiny", arch_args={}, classes=classes, bands=[1, 2, 3], mean=[0.0] * 3, std=[1.0] * 3)
    graphs = NetworkGraphs(network, card)
    graph = onnx.load(graphs((64, 64))).graph
    spread = [list(value.ints) for node in graph.node for value in node.attribute if value.name == "dilations"]
    assert spread
    assert all(dilations == [1, 1] for dilations in spread)
