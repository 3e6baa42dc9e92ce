"""Other programs that map scenes, in the benchmark where they are installed: each with the same network and windows, and a mask at the end.

They run as their documentation shows, but for what would be unfair: pixels are normalised alike, and where a program leaves the mask to its
caller, it is written by this package. Each sees as much overlap as ours: twice the margin.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rsdistill.geo.scenes import Scene
from rsdistill.inference.contestants import FreeBackend, Inside, Run, Task, mapper_for
from rsdistill.inference.exporting import write_onnx
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.served import Served
from rsdistill.methods.base import upsample
from rsdistill.outputs.geotiff import LabelRasterWriter


class Peer(NamedTuple):
    """Another program."""

    module: str
    """What is imported of it."""
    ready: Callable[[Task], Run]
    free: bool
    """Whether it takes any function in place of a network, and so can be measured without one."""


class Timed(torch.nn.Module):
    """The task's network, or one that answers at once, from normalised (N, C, T, T) windows to (N, K, T, T) logits, with a clock."""

    def __init__(self, mapper: Mapper, task: Task) -> None:
        super().__init__()
        network: Any = mapper.model.network
        self._network, self._free = network.eval(), FreeBackend(len(mapper.table), mapper.model.stride) if task.free else None
        self.spent = Inside()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Answer, and add up the time that it took."""
        start, clock = perf_counter(), process_time()
        if self._free:
            answer = torch.from_numpy(self._free(image.numpy(), np.empty(0, bool), []).copy())
        else:
            answer = upsample(self._network(image).logits, (image.shape[-2], image.shape[-1]))
        self.spent = Inside(self.spent.seconds + perf_counter() - start, self.spent.cpu_seconds + process_time() - clock)
        return answer


def monai(task: Task) -> Run:
    """MONAI's sliding window with Gaussian weights: the scene and all scores in memory."""
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer((task.tile, task.tile), sw_batch_size=1, overlap=2 * task.margin / task.tile, mode="gaussian")
    return _in_memory(task, inferer)


def terratorch(task: Task) -> Run:
    """TerraTorch's tiled inference with its default border and blending: the scene and all scores in memory."""
    from terratorch.tasks.tiled_inference import tiled_inference

    def infer(image: torch.Tensor, network: Timed) -> torch.Tensor:
        return tiled_inference(network, image, crop=task.tile, stride=task.tile - 2 * task.margin, batch_size=1)

    return _in_memory(task, infer)


def _in_memory(task: Task, infer: Callable[[torch.Tensor, Timed], torch.Tensor]) -> Run:
    """Return a run of what takes a whole image (1, C, H, W) and a network, and returns (1, K, H, W) scores."""
    mapper = mapper_for(task)
    torch.set_num_threads(task.threads)
    network = Timed(mapper, task)

    def run(path: Path) -> Inside:
        network.spent = Inside()
        with mapper.open(path) as scene, torch.inference_mode():
            pixels, valid = scene.read(scene.grid.window, mapper.bands(scene))
            scores = infer(torch.from_numpy(_normalised(mapper, pixels))[None], network)
            _write(task, mapper, scene, scores.argmax(1)[0].to(torch.uint8).numpy(), valid)
        return network.spent

    return run


def geoai(task: Task) -> Run:
    """GeoAI's windowed reading with its default spline weights: all scores in memory, and its own writer."""
    from geoai.inference import predict_geotiff

    mapper = mapper_for(task)
    torch.set_num_threads(task.threads)
    network = Timed(mapper, task)

    def run(path: Path) -> Inside:
        network.spent = Inside()
        with mapper.open(path) as scene:
            bands = list(mapper.bands(scene))
        predict_geotiff(
            network,
            str(path),
            task.out,
            tile_size=task.tile,
            overlap=2 * task.margin,
            batch_size=1,
            input_bands=bands,
            num_classes=len(mapper.table),
            output_dtype=np.dtype(mapper.table.dtype).name,
            output_nodata=mapper.table.nodata,
            preprocess_fn=lambda pixels: _normalised(mapper, pixels),
            postprocess_fn=lambda scores: mapper.table.to_ids(scores.argmax(0).astype(np.uint8)),
            device="cpu",
            verbose=False,
        )
        return network.spent

    return run


def geodeep(task: Task) -> Run:
    """GeoDeep with the exported network; it takes the class of a pixel from one window, and smooths the mask."""
    import geodeep as program

    mapper = mapper_for(task)
    network: Any = mapper.model.network
    graph = Path(task.out).with_name(f"graph.{task.tile}.{task.margin}.onnx")
    if not graph.exists():
        write_onnx(Served(network, mapper.card).eval(), mapper.card.model_copy(update={"margin": task.margin}), task.tile, graph)

    def run(path: Path) -> Inside:
        labels = program.run(str(path), str(graph), output_type="raw", max_threads=task.threads)
        with mapper.open(path) as scene:
            _write(task, mapper, scene, labels, np.ones(labels.shape, bool))
        return Inside()

    return run


PEERS: dict[str, Peer] = {
    "monai": Peer("monai", monai, free=True),
    "terratorch": Peer("terratorch", terratorch, free=True),
    "geoai": Peer("geoai", geoai, free=True),
    "geodeep": Peer("geodeep", geodeep, free=False),
}


def missing(who: str) -> str:
    """Return why a peer cannot take part, or an empty string."""
    return "" if find_spec(PEERS[who].module) else f"{who} is not installed"


def _normalised(mapper: Mapper, pixels: NDArray[Any]) -> NDArray[np.float32]:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (mapper.card.mean, mapper.card.std))
    return np.asarray((pixels.astype(np.float32) - mean) / std, np.float32)


def _write(task: Task, mapper: Mapper, scene: Scene, labels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
    with LabelRasterWriter(Path(task.out), scene.grid, mapper.table, overwrite=True) as writer:
        writer.write(0, np.where(valid, labels, np.uint8(255)))
