"""GINet as two ONNX graphs, one a scene and one a tile: what onnxruntime answers on canvases of two sizes is what torch answers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsdistill.models.context import Canvas
from rsdistill.models.ginet import GINet

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# The exporter notes that equal sides share a name.
pytestmark = pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")


class ContextGraph(nn.Module):
    def __init__(self, network: GINet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        canvas = self.network.encode_context(image, valid)
        return (*canvas.guidance, canvas.mask)


class TileGraph(nn.Module):
    def __init__(self, network: GINet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, box: Tensor, guidance: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        canvas = Canvas(guidance, mask, mask, (4 * mask.shape[-2], 4 * mask.shape[-1]))
        return self.network.decode(image, canvas, box, torch.zeros(len(box), dtype=torch.int64)).logits


def session(graph: nn.Module, inputs: tuple, dynamic_shapes: tuple) -> Callable[..., list[np.ndarray]]:
    """Export ``graph`` and return a function that runs it in onnxruntime."""
    program = torch.onnx.export(graph.eval(), inputs, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
    served = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [value.name for value in served.get_inputs()]
    return lambda *arrays: served.run(None, dict(zip(names, arrays, strict=True)))


@pytest.fixture
def network(lively: Callable[..., GINet]) -> GINet:
    return lively("ginet-lite", encoder="test_resnet", dim=8, fusion=True)


ROWS, COLS, ANY = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("cols", min=2, max=64), torch.export.Dim.DYNAMIC
SIZES = (64, 96), (160, 128)


def drawn(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return a context and its validity."""
    return torch.randn(1, 3, height, width), torch.rand(1, height, width) < 0.8


@pytest.mark.slow
def test_the_scene_s_graph_answers_as_torch_on_two_canvas_sizes(network: GINet) -> None:
    graph = ContextGraph(network)
    run = session(graph, drawn(*SIZES[0]), ({2: 32 * ROWS, 3: 32 * COLS}, {1: 32 * ROWS, 2: 32 * COLS}))
    for size in SIZES:
        given = drawn(*size)
        with torch.no_grad():
            expected = graph(*given)
        for found, right in zip(run(*(one.numpy() for one in given)), expected, strict=True):
            assert np.abs(found - right.numpy()).max() < 1e-4


def test_the_tile_s_graph_answers_as_torch_on_two_canvas_sizes(network: GINet) -> None:
    of_scene, of_tile = ContextGraph(network), TileGraph(network)
    tile, box = torch.randn(2, 3, 128, 128), torch.tensor([[0.0, 0.0, 0.25, 0.25], [0.5, 0.7, 0.75, 1.0]])
    sides = {2: ANY, 3: ANY}
    with torch.no_grad():
        canvases = [of_scene(*drawn(*size)) for size in SIZES]
    *guidance, mask = canvases[0]
    run = session(of_tile, (tile, box, tuple(guidance), mask), ({0: ANY}, {0: ANY}, (sides,) * len(guidance), sides))
    for *guidance, mask in canvases:
        with torch.no_grad():
            expected = of_tile(tile, box, tuple(guidance), mask)
        (answer,) = run(*(one.numpy() for one in (tile, box, *guidance, mask)))
        assert np.abs(answer - expected.numpy()).max() < 1e-4 * float(expected.std())
