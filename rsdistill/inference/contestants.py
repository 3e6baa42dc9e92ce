"""Who maps a scene in the benchmark: this package, a bare loop over the network, and other programs; each measured in a process of its own.

Every contestant gets the same network, scene, windows and number of threads. What it imports and loads, and one small run for what is done
once, comes before the clock starts.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import MachineError
from rsdistill.geo.caching import bounded_cache, cache_for
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import plan
from rsdistill.inference.backends import Backend
from rsdistill.inference.engine import Stats, padded
from rsdistill.inference.journal import Journal
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.products import Look, Products, write_products
from rsdistill.inference.scores import Floats
from rsdistill.inference.settings import MapConfig
from rsdistill.outputs.geotiff import LabelRasterWriter

GRAPH = "graph.onnx"


@dataclass(frozen=True)
class Task:
    """One run of one contestant."""

    who: str
    """A key of :data:`CONTESTANTS`."""
    scene: str
    model: str
    out: str
    tile: int
    margin: int
    threads: int = 1
    free: bool = False
    """Put a network in that answers at once: what is left is the work around it."""


@dataclass(frozen=True)
class Measured:
    """What a run took."""

    seconds: float
    cpu_seconds: float
    """Of all its threads."""
    memory_bytes: int
    """At its peak, above what imports and the loaded network take."""
    network_seconds: float = 0.0
    """Wall-clock time inside the network, where the contestant tells."""
    network_cpu_seconds: float = 0.0
    """CPU time likewise."""


class Inside(NamedTuple):
    """Time inside the network; 0 where it is not told."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


Run = Callable[[Path], Inside]
"""Maps the scene in a file."""


class FreeBackend(Backend):
    """A network that answers at once, and always the same."""

    def __init__(self, classes: int, stride: int) -> None:
        """Answer with ``classes`` scores that are drawn once."""
        self.classes, self.stride = classes, stride
        self._answer = np.empty((0, 0, 0, 0), np.float32)

    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Any) -> Floats:
        """As the base class."""
        shape = (len(images), self.classes, *images.shape[-2:])
        if self._answer.shape != shape:
            cells = np.random.default_rng(0).random((self.classes, shape[2] // 16 + 1, shape[3] // 16 + 1), np.float32)
            self._answer = np.broadcast_to(cells.repeat(16, 1).repeat(16, 2)[:, : shape[2], : shape[3]], shape).copy()
        return self._answer


class FreeMapper(Mapper):
    """A mapper without its network."""

    def backend(self, scene: Any, canvases: Path | None = None) -> Backend:
        """As the base class."""
        return FreeBackend(len(self.table), self.model.stride)


def _mapper(task: Task) -> Mapper:
    config = MapConfig.of(tile=task.tile, margin=task.margin, threads=task.threads, device="cpu")
    return (FreeMapper if task.free else Mapper)(config, Path(task.model))


def ours(task: Task) -> Run:
    """Map as ``predict`` does, from the scene's file to a finished mask."""
    mapper = _mapper(task)
    _ = mapper.model

    def run(path: Path) -> Inside:
        out, stats = Path(task.out), Stats()
        with mapper.open(path) as scene, bounded_cache(cache_for(scene)), Journal(out, {}, resume=False) as journal:
            strips = mapper.strips(scene, stats=stats, journal=journal)
            write_products(strips, scene.grid, mapper.table, Products((out,)), Look(overwrite=True))
        return Inside(stats.network_seconds)

    return run


def bare(task: Task) -> Run:
    """Read windows one after the other and run the network on them; nothing is kept: the floor."""
    mapper = _mapper(task)
    _ = mapper.model

    def run(path: Path) -> Inside:
        spent = Inside()
        with mapper.open(path) as scene:
            backend, bands = mapper.backend(scene), mapper.bands(scene)
            layout = plan(scene.grid.height, scene.grid.width, task.tile, task.margin, mapper.model.stride)
            for number in range(len(layout)):
                window = layout.placement(*divmod(number, len(layout.cols))).read
                image, valid = padded(layout.tile, *scene.read(window, bands))
                start, clock = perf_counter(), process_time()
                backend.labels(image[None], valid[None], [window])
                spent = Inside(spent.seconds + perf_counter() - start, spent.cpu_seconds + process_time() - clock)
        return spent

    return run


def monai(task: Task) -> Run:
    """MONAI's sliding window with Gaussian weights: the scene and all scores in memory, then the writer that ours has."""
    import torch
    from monai.inferers import SlidingWindowInferer

    from rsdistill.methods.base import upsample

    mapper = _mapper(task)
    model, table = mapper.model, mapper.table
    torch.set_num_threads(task.threads)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.card.mean, model.card.std))
    free = FreeBackend(len(table), model.stride)
    inferer = SlidingWindowInferer((task.tile, task.tile), sw_batch_size=1, overlap=2 * task.margin / task.tile, mode="gaussian")
    spent = [Inside()]

    def predictor(window: torch.Tensor) -> torch.Tensor:
        start, clock = perf_counter(), process_time()
        size = (window.shape[-2], window.shape[-1])
        if task.free:
            answer = torch.from_numpy(free(window.numpy(), np.empty(0, bool), []))
        else:
            network: Any = model.network
            answer = upsample(network(window).logits, size)
        spent[0] = Inside(spent[0].seconds + perf_counter() - start, spent[0].cpu_seconds + process_time() - clock)
        return answer

    def run(path: Path) -> Inside:
        spent[0] = Inside()
        with open_scene(path) as scene, torch.inference_mode():
            pixels, valid = scene.read(scene.grid.window, scene.bands(model.card.bands))
            image = (torch.from_numpy(pixels)[None].float() - mean) / std
            logits: Any = inferer(image, predictor)
            labels = logits.argmax(1)[0].to(torch.uint8).numpy()
            with LabelRasterWriter(Path(task.out), scene.grid, table, overwrite=True) as writer:
                writer.write(0, np.where(valid, labels, np.uint8(255)))
        return spent[0]

    return run


def geodeep(task: Task) -> Run:
    """GeoDeep with the exported network, a file :data:`GRAPH` beside the result; its mask stays in memory."""
    import geodeep as program

    def run(path: Path) -> Inside:
        program.run(str(path), str(Path(task.out).with_name(GRAPH)), output_type="raw", max_threads=task.threads)
        return Inside()

    return run


CONTESTANTS: dict[str, Callable[[Task], Run]] = {"ours": ours, "bare": bare, "monai": monai, "geodeep": geodeep}
"""Who takes part: each gets ready, and returns what maps a scene and tells the time inside the network."""
PEERS = ("monai", "geodeep")


def missing(who: str) -> str:
    """Return why a peer cannot take part, or an empty string."""
    return "" if find_spec(who) else f"{who} is not installed"


def measure(task: Task, warm_up: Path) -> Measured:
    """Run ``task`` in a process of its own, after a run on the small scene ``warm_up``.

    Raises:
        MachineError: it failed.
    """
    code = f"from rsdistill.inference.contestants import main; main({asdict(task)!r}, {str(warm_up)!r})"
    with TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"{task.who} failed: {reason}", hint="run it alone with rsdistill bench --only")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main(fields: dict[str, Any], warm_up: str) -> None:
    """Be the process of one run: the last line of stdout is what it took, as JSON."""
    task = Task(**fields)
    run = CONTESTANTS[task.who](task)
    run(Path(warm_up))
    before = memory(peak=False)
    start, clock = perf_counter(), process_time()
    inside = run(Path(task.scene))
    found = Measured(perf_counter() - start, process_time() - clock, memory(peak=True) - before, *inside)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


def memory(*, peak: bool) -> int:
    """Return the bytes of memory that this process holds, or held at its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        name = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
