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


def test_onnx_answers_as_torch_on_two_canvas_sizes(lively: Callable[..., GINet]) -> None:
    network = lively("ginet-lite", encoder="test_resnet", dim=8, fusion=True)
    of_scene, of_tile = ContextGraph(network), TileGraph(network)
    image, valid = torch.randn(1, 3, 64, 96), torch.ones(1, 64, 96, dtype=torch.bool)
    tile, box = torch.randn(2, 3, 128, 128), torch.tensor([[0.0, 0.0, 0.25, 0.25], [0.5, 0.7, 0.75, 1.0]])
    with torch.no_grad():
        *guidance, mask = of_scene(image, valid)
    rows, cols, any_ = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("cols", min=2, max=64), torch.export.Dim.DYNAMIC
    sides = {2: any_, 3: any_}
    run_scene = session(of_scene, (image, valid), ({2: 32 * rows, 3: 32 * cols}, {1: 32 * rows, 2: 32 * cols}))
    run_tile = session(of_tile, (tile, box, tuple(guidance), mask), ({0: any_}, {0: any_}, (sides,) * len(guidance), sides))
    for height, width in ((64, 96), (160, 128)):
        image, valid = torch.randn(1, 3, height, width), torch.rand(1, height, width) < 0.8
        maps = run_scene(image.numpy(), valid.numpy())
        with torch.no_grad():
            *guidance, mask = of_scene(image, valid)
            expected = of_tile(tile, box, tuple(guidance), mask)
        for found, right in zip(maps, (*guidance, mask), strict=True):
            assert np.abs(found - right.numpy()).max() < 1e-4
        (answer,) = run_tile(tile.numpy(), box.numpy(), *maps)
        assert np.abs(answer - expected.numpy()).max() < 1e-4 * float(expected.std())
