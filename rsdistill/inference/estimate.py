"""What mapping a scene will take, told before it starts: windows, memory, disk, and time from two measured windows."""

from dataclasses import dataclass
from time import perf_counter

from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import plan
from rsdistill.inference.blending import Wanted
from rsdistill.inference.engine import Job, padded
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.memory import engine_bytes

HOLES = 1.4
"""Of a heap that keeps what is freed, as it does without --max-memory: arrays of many sizes that come and go leave room between them."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take at most; windows without data make it less."""

    windows: int
    overlap_factor: float
    """Pixels that pass through the network per pixel that is mapped."""
    memory_bytes: int
    """For rows, windows, strips, writers and decoded blocks; the network's own is not in it."""
    disk_bytes: int
    """Of the rasters before compression, overviews included, and of what is kept to resume."""
    seconds: float
    """In the network, on this machine as busy as it is now."""


def estimate(mapper: Mapper, scene: Scene, wanted: Wanted) -> Estimate:
    """Return what mapping ``scene`` will take; two windows of it are run.

    Raises:
        ConfigError: an option does not fit the model or the scene.
    """
    config, bands, windows = mapper.config, mapper.bands(scene), mapper.model.windows(mapper.config.tile, mapper.config.margin)
    area = mapper.area(scene, mapper.interest(scene))
    job = Job.of(plan(scene.grid.height, scene.grid.width, windows.tile, windows.margin, mapper.model.stride), area, config.blend)
    height, width = job.plan.tile
    needed = engine_bytes(scene, job, bands, len(mapper.table), config.blend, wanted, mapper.batch)
    planes = 1 + wanted.confidence + len(mapper.table) * wanted.probabilities
    frame = mapper.frame(scene)
    return Estimate(
        windows=len(job),
        overlap_factor=len(job) * height * width / (area.height * area.width),
        memory_bytes=needed if config.max_memory else int(HOLES * needed),
        disk_bytes=frame.height * frame.width * planes * 4 // 3 + area.height * area.width * planes,
        seconds=_seconds(mapper, scene, job),
    )


def _seconds(mapper: Mapper, scene: Scene, job: Job) -> float:
    """Run the two middle windows: the first also stands for what is done once a scene, the second for all others."""
    backend, bands, times = mapper.backend(scene), mapper.bands(scene), []
    size = job.plan.tile
    for _ in range(2):
        read = job.plan.placement(job.rows[len(job.rows) // 2], job.cols[len(job.cols) // 2]).read
        image, valid = padded(size, *scene.read(read, bands))
        start = perf_counter()
        backend.labels(image[None], valid[None], [read])
        times.append(perf_counter() - start)
    return times[0] + (len(job) - 1) * times[1]
