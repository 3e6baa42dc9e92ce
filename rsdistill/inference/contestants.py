"""Who maps a scene in the benchmark: this package as ``predict`` does, a bare loop over the network, and a network that costs nothing."""

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.caching import bounded_cache, cache_for
from rsdistill.geo.windows import plan
from rsdistill.inference.backends import Backend
from rsdistill.inference.engine import Stats, padded
from rsdistill.inference.journal import Journal
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.products import Look, Products, write_products
from rsdistill.inference.scores import Floats
from rsdistill.inference.settings import MapConfig


@dataclass(frozen=True)
class Task:
    """One run of one contestant."""

    who: str
    """A key of :data:`rsdistill.inference.race.CONTESTANTS`."""
    scene: str
    model: str
    out: str
    tile: int
    margin: int
    threads: int = 1
    free: bool = False
    """Put a network in that answers at once: what is left is the work around it."""


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
            logits = np.ascontiguousarray(cells.repeat(16, 1).repeat(16, 2)[:, : shape[2], : shape[3]])  # as a network's lie in memory
            self._answer = np.broadcast_to(logits, shape)
        return self._answer


class FreeMapper(Mapper):
    """A mapper without its network."""

    def backend(self, scene: Any, canvases: Path | None = None) -> Backend:
        """As the base class."""
        return FreeBackend(len(self.table), self.model.stride)


def mapper_for(task: Task) -> Mapper:
    """Return what maps with this package; free of its network where the task is."""
    config = MapConfig.of(tile=task.tile, margin=task.margin, threads=task.threads, device="cpu")
    return (FreeMapper if task.free else Mapper)(config, Path(task.model))


def ours(task: Task) -> Run:
    """Map as ``predict`` does, from the scene's file to a finished mask."""
    mapper = mapper_for(task)
    _ = mapper.model

    def run(path: Path) -> Inside:
        out, stats = Path(task.out), Stats()
        with (
            mapper.open(path) as scene,
            bounded_cache(cache_for(scene)),
            Journal(out, {}, resume=False) as journal,
            closing(mapper.strips(scene, stats=stats, journal=journal)) as strips,
        ):
            write_products(strips, scene.grid, mapper.table, Products((out,)), Look(overwrite=True))
        return Inside(stats.network_seconds)

    return run


def bare(task: Task) -> Run:
    """Read windows one after the other and run the network on them; nothing is kept: the floor."""
    mapper = mapper_for(task)
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


def memory(*, peak: bool) -> int:
    """Return the bytes of memory that this process holds, or held at its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        name = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
