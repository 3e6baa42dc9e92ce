"""Scenes as shards on many workers: cut, made and put together, one scene after the other without a pause between them."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

from rsdistill.errors import InputError, RsdistillError
from rsdistill.geo.files import atomic, refuse_existing
from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import plan
from rsdistill.inference.blending import Wanted
from rsdistill.inference.journal import STATE, Journal, remove_shards, shards_of
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.merging import find_shards, gather, look_of, write_map
from rsdistill.inference.products import Products
from rsdistill.inference.settings import PoolConfig, ScaleConfig
from rsdistill.inference.sharding import Layout, absolute, canvas_folder, lay_out, make_shard, shard_of, shard_path
from rsdistill.inference.workers import GivenPool, Job, Pool, Run, on_workers, refuse_forks
from rsdistill.reporting import Table, Task

SHARDS_A_WORKER = 4
"""At least so many shards for each worker, so that none has nothing to do for long at the end."""
PART = "part"


@dataclass(frozen=True)
class Assembly:
    """The task of putting the finished shards in a folder together: paths and plain values."""

    scene: str
    folder: Path
    products: Products
    overwrite: bool


@dataclass(frozen=True)
class Assembled:
    """What a scene became."""

    scene: Path
    products: Products
    size: tuple[int, int]
    pixels: list[int]
    """Of each class."""
    facts: dict[str, float]
    """Of all shards together; ``merge_seconds``, and ``wall_seconds`` from the first cut to the last file."""

    @property
    def data(self) -> dict[str, Any]:
        """What is told of it as JSON."""
        return {
            "scene": str(self.scene),
            "paths": [str(path) for path in self.products.paths],
            "height": self.size[0],
            "width": self.size[1],
            "valid_pixels": sum(self.pixels),
            **self.facts,
        }


@dataclass
class _Underway:
    """A scene that is being mapped."""

    scene: Path
    products: Products
    folder: Path
    layout: Layout
    hold: ExitStack
    overwrite: bool
    """Whether its results may stand already: asked for, or made by the run that is gone on with."""
    start: float = field(default_factory=perf_counter)
    done: int = 0
    failed: int = 0

    @property
    def over(self) -> bool:
        return self.done + self.failed == len(self.layout.windows)


class Scaling:
    """Scenes on their way through a pool."""

    def __init__(
        self, mapper: Mapper, config: ScaleConfig, look: Mapping[str, Any], finish: Callable[[Path, Products], None], *, resume: bool
    ) -> None:
        """Prepare to map scenes.

        Args:
            mapper: the model and its options.
            config: how many workers, and what size the shards.
            look: how the maps are to be written.
            finish: called with each scene whose files are made.
            resume: go on where an interrupted run of the same command stopped.
        """
        self._mapper, self._config, self._look, self._finish, self._resume = mapper, config, look, finish, resume
        self._underway: dict[str, _Underway] = {}
        self._holds = ExitStack()
        self._task: Task
        self._scenes = self._made = 0
        self.assembled: list[Assembled] = []
        self.failures: list[str] = []
        self.retries = self.deaths = 0

    def run(self, named: Mapping[Path, Products], pool: Pool) -> None:
        """Map the scenes; what fails is told in :attr:`failures`, by name, and the rest done.

        Raises:
            InputError: the only scene cannot be taken.
        """
        self._scenes = len(named)
        run = Run(pool, self._config.retries, self._done, self._failed)
        with self._holds, self._mapper.progress.task("map, % of all scenes", 100) as self._task:
            run.finish(job for path, products in named.items() for job in self._jobs(path, products))
        self.retries, self.deaths = run.retries, run.deaths

    @property
    def kept(self) -> int:
        """Finished shards of scenes that could not be put together."""
        return sum(underway.done for underway in self._underway.values())

    def _jobs(self, path: Path, products: Products) -> Iterator[Job]:
        """Cut a scene and yield the task of each shard."""
        hold = self._holds.enter_context(ExitStack())
        try:
            underway = self._prepare(path, products, hold)
        except InputError as error:
            hold.close()
            if self._scenes == 1:
                raise
            self.failures.append(_told(str(path), error))
            return
        layout, part = underway.layout, underway.folder / PART
        self._underway[layout.card["scene"]] = underway
        for index in range(1, len(layout.windows) + 1):
            place = shard_path(part, index, len(layout.windows))
            shard = shard_of(layout, self._mapper, index, place, canvas_folder(part, layout.card["mark"]))
            yield Job(shard.name, make_shard, shard)

    def _prepare(self, path: Path, products: Products, hold: ExitStack) -> _Underway:
        """Hold a scene's results against other runs, and cut it as an interrupted run of the same command did, or anew."""
        folder = shards_of(products.paths[0])
        with self._mapper.open(absolute(path)) as scene:
            hold.enter_context(Journal(products.paths[0], {}, resume=False))
            wanted = Wanted(products.confidence is not None, products.probabilities is not None)
            layout = self._old_layout(scene, wanted, folder) if self._resume else None
            overwrite = self._config.overwrite or layout is not None  # what stands there is then this very map, of a run killed at its end
            refuse_existing(products.paths, overwrite)
            if layout is None:
                layout = lay_out(self._mapper, scene, wanted, self._count(scene), self._look)
                shutil.rmtree(folder, ignore_errors=True)
                with atomic(folder / STATE) as state:
                    state.write_text(json.dumps({"count": len(layout.windows), "mark": layout.card["mark"]}), encoding="utf-8")
        return _Underway(path, products, folder, layout, hold, overwrite)

    def _old_layout(self, scene: Scene, wanted: Wanted, folder: Path) -> Layout | None:
        """Return the layout of the shards in ``folder``; None where they are not of this very map."""
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            layout = lay_out(self._mapper, scene, wanted, int(state["count"]), self._look)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if layout.card["mark"] != state.get("mark"):
            return None
        self._mapper.progress.message(f"{scene.path}: shards that an earlier run finished are not made again")
        return layout

    def _count(self, scene: Scene) -> int:
        """Return how many shards a scene is cut into: never more than it has windows, for nothing would be left for the others."""
        share = ceil(SHARDS_A_WORKER * self._config.workers / self._scenes)
        windows = self._mapper.model.windows(self._mapper.config.tile, self._mapper.config.margin)
        grid = plan(scene.grid.height, scene.grid.width, windows.tile, windows.margin, self._mapper.model.stride)
        return min(len(grid), max(ceil(scene.grid.height * scene.grid.width / self._config.shard_size**2), share))

    def _done(self, job: Job, made: Any) -> Iterable[Job]:
        """Count a shard, and put a scene together after its last; or take note of a scene that is finished."""
        if isinstance(job.argument, Assembly):
            self._assembled(job.argument, *made)
            return
        underway = self._underway[job.argument.card.scene]
        underway.done += 1
        self._made += 1
        self._task.advance(100 / self._scenes / len(underway.layout.windows), shards=self._made)
        if underway.over and not underway.failed:
            one = job.argument.card.scene
            given = Assembly(one, underway.folder.absolute(), underway.products.absolute, underway.overwrite)
            yield Job(f"{underway.scene}, merge", put_together, given)
        elif underway.over:
            underway.hold.close()

    def _assembled(self, assembly: Assembly, pixels: list[int], facts: dict[str, float]) -> None:
        """Let a scene go whose files are made; until its run file stands too, a run that is killed can be gone on with."""
        one = self._underway.pop(assembly.scene)
        self._finish(one.scene, one.products)
        remove_shards(one.folder)
        one.hold.close()
        size = one.layout.card["frame"][2:]
        self.assembled.append(Assembled(one.scene, one.products, size, pixels, facts | {"wall_seconds": perf_counter() - one.start}))

    def _failed(self, job: Job, error: BaseException) -> None:
        self.failures.append(_told(job.name, error))
        scene = job.argument.scene if isinstance(job.argument, Assembly) else job.argument.card.scene
        underway = self._underway[scene]
        underway.failed += 1
        if underway.over or isinstance(job.argument, Assembly):
            underway.hold.close()


def put_together(assembly: Assembly) -> tuple[list[int], dict[str, float]]:
    """Make a scene's files from its shards; return the count of pixels of each class, and what it all took.

    Raises:
        MaskError: a shard is missing or belongs to something else.
        DiskError: a file cannot be written.
    """
    start = perf_counter()
    (files,) = find_shards([assembly.folder]).values()
    shards = gather(files)
    look = look_of(shards.card, overwrite=assembly.overwrite)
    pixels = write_map(shards, assembly.products, look)
    return pixels, shards.facts | {"merge_seconds": perf_counter() - start}


def summary(scaling: Scaling) -> Table:
    """Return what a person wants to know of a run: how fast it was, what held it up, and what had to be done again."""
    rows = tuple(
        (
            one.scene.name,
            f"{one.facts['shards']:.0f}",
            f"{one.size[0] * one.size[1] / one.facts['wall_seconds'] / 1e6:.2f}",
            f"{one.facts['slowest_shard']:.0f} ({one.facts['slowest_seconds']:.1f} s)",
            f"{one.facts['merge_seconds']:.1f} s",
        )
        for one in scaling.assembled
    )
    again = f", {scaling.retries} attempts repeated" if scaling.retries else ""
    died = f", workers replaced after a death: {scaling.deaths}" if scaling.deaths else ""
    return Table(f"shards{again}{died}", ("scene", "shards", "Mpx/s", "slowest", "merge"), rows)


def pool_for(config: PoolConfig, executor: Executor | None, modules: Sequence[str], device: str = "cpu") -> AbstractContextManager[Pool]:
    """Return where the parts of the work are to be done, on ``device``; processes of this machine load ``modules`` meanwhile.

    Raises:
        ConfigError: a scheduler is named twice, or the executor forks.
        MissingExtraError: Dask is asked for and not installed.
    """
    if executor is not None:
        refuse_forks(executor)
        return nullcontext(GivenPool(executor, 2 * SHARDS_A_WORKER * config.workers))
    if config.engine == "dask":
        from rsdistill.inference.clusters import DaskPool

        return DaskPool(scheduler=config.scheduler, scheduler_file=config.scheduler_file, workers=config.workers)
    from rsdistill.inference.processes import ProcessPool, accelerators, load_ahead

    load_ahead(modules)
    return ProcessPool(config.workers, accelerators(device))


@contextmanager
def each_for(config: PoolConfig, executor: Executor | None) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield how scenes are worked on one by one: by workers where they are asked for, else in this process.

    Raises:
        ConfigError, MissingExtraError: as :func:`pool_for`.
    """
    if not config.scaled and executor is None:
        from rsdistill.data.per_scene import one_by_one  # it brings torch, which an exported model does without

        yield one_by_one
        return
    with pool_for(config, executor, ["rsdistill.data.building"]) as pool:
        yield on_workers(pool, config.retries)


def threads_a_worker(config: ScaleConfig) -> int | None:
    """Return how many threads each network gets: what was asked for, else this machine's cores shared out among its workers."""
    if config.threads or config.scheduler or config.scheduler_file:
        return config.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // config.workers)


def _told(name: str, error: BaseException) -> str:
    hint = f" ({error.hint})" if isinstance(error, RsdistillError) and error.hint else ""
    kind = "" if isinstance(error, RsdistillError) else f"{type(error).__name__}: "
    return f"{name}: {kind}{error}{hint}"
