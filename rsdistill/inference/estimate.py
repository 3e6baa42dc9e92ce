"""What mapping a scene will take, told before it starts: windows, memory, disk, and time from two measured windows."""

from dataclasses import dataclass
from time import perf_counter

from rsdistill.geo.occupancy import Occupancy
from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import Window, plan
from rsdistill.inference.blending import Wanted
from rsdistill.inference.engine import Job, padded
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.memory import engine_bytes
from rsdistill.inference.sharding import holds_data, lay_out

HOLES = 1.4
"""Of a heap that keeps what is freed, as it does without --max-memory: arrays of many sizes that come and go leave room between them."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take: memory and disk at most; windows that only seem empty would make the rest more."""

    windows: int
    forward_passes: int
    """Of windows that seem to hold data, by the scene's header; each counts eight times where --tta turns it."""
    overlap_factor: float
    """Pixels that pass through the network per pixel that is mapped."""
    memory_bytes: int
    """For rows, windows, strips, writers and decoded blocks; the network's own is not in it."""
    disk_bytes: int
    """Of the rasters before compression, overviews included, and of what is kept to resume."""
    seconds: float
    """In the network, on this machine as busy as it is now."""


def estimate(mapper: Mapper, scene: Scene, wanted: Wanted, part: Window | None = None) -> Estimate:
    """Return what mapping ``scene``, or a ``part`` of what is to be mapped of it, will take; two windows of it are run.

    Raises:
        ConfigError: an option does not fit the model or the scene.
    """
    config, bands, windows = mapper.config, mapper.bands(scene), mapper.model.windows(mapper.config.tile, mapper.config.margin)
    area = part or mapper.area(scene, mapper.interest(scene))
    job = Job.of(plan(scene.grid.height, scene.grid.width, windows.tile, windows.margin, mapper.model.stride), area, config.blend)
    height, width = job.plan.tile
    needed = engine_bytes(scene, job, bands, len(mapper.table), config.blend, wanted, mapper.batch)
    planes = 1 + wanted.confidence + len(mapper.table) * wanted.probabilities
    frame, busy = part or mapper.frame(scene), _busy(mapper, scene, job)
    return Estimate(
        windows=len(job),
        forward_passes=busy * (8 if config.tta == "d4" else 1),
        overlap_factor=len(job) * height * width / (area.height * area.width),
        memory_bytes=needed if config.max_memory else int(HOLES * needed),
        disk_bytes=frame.height * frame.width * planes * 4 // 3 + area.height * area.width * planes,
        seconds=_seconds(mapper, scene, job, busy),
    )


def _busy(mapper: Mapper, scene: Scene, job: Job) -> int:
    """Return how many windows seem to hold data; blended ones see their neighbours' too, so there all count."""
    if mapper.config.blend != "core":
        return len(job)
    row_spans, col_spans = [job.plan.rows[row] for row in job.rows], [job.plan.cols[col] for col in job.cols]
    rows, cols = ([*(first for _, first, _ in spans), spans[-1][2]] for spans in (row_spans, col_spans))
    return int(holds_data(Occupancy(scene), mapper.interest(scene), rows, cols).sum())


def _seconds(mapper: Mapper, scene: Scene, job: Job, busy: int) -> float:
    """Run the two middle windows: the first also stands for what is done once a scene, the second for all others that hold data."""
    backend, bands, times = mapper.backend(scene), mapper.bands(scene), []
    size = job.plan.tile
    for _ in range(2):
        read = job.plan.placement(job.rows[len(job.rows) // 2], job.cols[len(job.cols) // 2]).read
        image, valid = padded(size, *scene.read(read, bands))
        start = perf_counter()
        backend.labels(image[None], valid[None], [read])
        times.append(perf_counter() - start)
    return times[0] + max(0, busy - 1) * times[1]


def estimate_shard(mapper: Mapper, scene: Scene, wanted: Wanted, index: int, count: int) -> Estimate:
    """Return what shard ``index`` (from 1) of ``count`` of the map of ``scene`` will take.

    Raises:
        ConfigError: an option does not fit the model or the scene.
    """
    part = lay_out(mapper, scene, wanted, count, {}).windows[index - 1]
    return estimate(mapper, scene, wanted, part) if part else Estimate(0, 0, 1.0, 0, 0, 0.0)
