"""Scenes through a model: what is checked before, which windows, which backend; strips come out."""

import hashlib
from collections.abc import Generator, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from rsdistill import __version__
from rsdistill.errors import ConfigError, SceneError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.interest import Interest
from rsdistill.geo.resampling import ResampledScene
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.windows import Window, plan
from rsdistill.inference.backends import Backend
from rsdistill.inference.blending import Strip, Wanted
from rsdistill.inference.choosing import Sample, samples, settled
from rsdistill.inference.engine import Job, Stats, strips
from rsdistill.inference.fitting import band_notes, bands_for, check_type, name_doubts, size_doubts
from rsdistill.inference.heap import bound_heap
from rsdistill.inference.journal import Journal
from rsdistill.inference.loading import Choice, Model, Windows, backend_for, load, read_model_card
from rsdistill.inference.memory import engine_bytes, fitting, network_bytes
from rsdistill.inference.products import framed
from rsdistill.inference.settings import Engine, MapConfig
from rsdistill.reporting import SILENT, Progress

LABELS = Wanted()
CPU_BATCH, ACCELERATOR_BATCH = 1, 16
"""Windows at once: on the processor, more make nothing faster."""


class Mapper:
    """A model and how it is to be used, for any number of scenes; the network is loaded when the first is mapped."""

    def __init__(
        self, config: MapConfig, model: Path, progress: Progress = SILENT, *, pixel_size: float | None = None, trusted: bool = False
    ) -> None:
        """Read the card of the model file ``model``.

        Args:
            config: how scenes are mapped.
            model: a model file.
            progress: told of notes and windows.
            pixel_size: scenes are resampled to it, in units of their CRS.
            trusted: ``config`` is that of a mapper that has settled what runs the network.

        Raises:
            CheckpointError: it is none of ours.
        """
        self.config, self.path, self.progress = config, model, progress
        self.pixel_size = pixel_size
        self._settled, self._placeless = trusted, False
        self.earlier: Choice | None = None
        """What an interrupted run that now goes on had chosen: what ``auto`` means then."""
        self.card = read_model_card(model)
        self.table = ClassTable.from_card([dict(entry) for entry in self.card.classes], self.card.ignore)

    @cached_property
    def model(self) -> Model:
        """The loaded model."""
        return load(self.path, self.config.threads)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def open(self, path: Path) -> Scene:
        """Open a scene that the model can read.

        Raises:
            SceneError: it cannot be taken, or its bands or values are not what the model was trained on.
        """
        config = self.config
        scene = open_scene(path, nodata=config.nodata or None, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote)
        try:
            if self.pixel_size:
                scene = ResampledScene(scene, self.pixel_size)
            self._check(scene)
        except BaseException:
            scene.close()
            raise
        return scene

    def bands(self, scene: Scene) -> tuple[int, ...]:
        """Return the bands of ``scene`` that the model reads, 1-based.

        Raises:
            SceneError: it has not enough of them, with both numbers; or only some of their names.
            ConfigError: more or fewer bands were named than the model reads.
        """
        wanted = self.config.bands
        if wanted and len(wanted) != len(self.card.bands):
            raise ConfigError(f"{len(wanted)} bands are named, {self.path} reads {len(self.card.bands)}", hint="name them in its order")
        return scene.bands(wanted) if wanted else bands_for(scene, self.card, self.path)

    def frame(self, scene: Scene) -> Window:
        """Return the part of ``scene`` that results cover: all of it, or ``--window``.

        Raises:
            ConfigError: the window does not lie in the scene.
        """
        if self.config.window is None:
            return scene.grid.window
        window = Window(*self.config.window)
        if min(window) < 0 or 0 in window[2:] or window.intersection(scene.grid.window) != window:
            size = f"{scene.grid.height} x {scene.grid.width}"
            raise ConfigError(f"window {','.join(map(str, window))} is not inside {scene.path} ({size})", hint="row,col,height,width")
        return window

    def interest(self, scene: Scene) -> Interest | None:
        """Return the polygons of interest, None where all of ``scene`` is.

        Raises:
            LabelError: the vector file cannot be read.
            ConfigError: none of its polygons meets the scene.
        """
        return Interest(self.config.aoi, scene.grid) if self.config.aoi else None

    def area(self, scene: Scene, interest: Interest | None) -> Window:
        """Return the part of :meth:`frame` that has to be mapped.

        Raises:
            ConfigError: nothing of what is of interest lies in the window.
        """
        frame = self.frame(scene)
        area = frame.intersection(interest.window) if interest else frame
        if 0 in area[2:]:
            raise ConfigError(f"no polygon of {self.config.aoi} lies in the window", hint="leave one of --aoi and --window out")
        return area

    def strips(
        self,
        scene: Scene,
        wanted: Wanted = LABELS,
        stats: Stats | None = None,
        journal: Journal | None = None,
        *,
        part: Window | None = None,
        canvases: Path | None = None,
    ) -> Generator[Strip, None, None]:
        """Map ``scene`` and yield strips that cover :meth:`frame`, or ``part``, from top to bottom, counted from its corner.

        Args:
            scene: from :meth:`open`.
            wanted: what strips carry beside labels.
            stats: filled while the strips are made.
            journal: keeps the strips, and gives back those that an earlier run kept.
            part: of :meth:`area`, all that is mapped.
            canvases: folder where the scene's context is kept for the other parts.

        Raises:
            ConfigError: an option does not fit the model or the scene.
        """
        bound_heap(tight=self.config.max_memory is not None)
        config, interest = self.config, self.interest(scene)
        area, windows = part or self.area(scene, interest), self.model.windows(config.tile, config.margin)
        backend = self.backend(scene, canvases)

        def below(row: int) -> Iterator[Strip]:
            """Map what lies below the first ``row`` rows of the area."""
            if row == area.height:
                return
            how: dict[str, Any] = {"confidence": wanted.confidence, "probabilities": wanted.probabilities, "blend": config.blend}
            how |= {"bands": self.bands(scene), "tile": windows.tile, "margin": windows.margin, "batch": self.batch}
            rest = Window(area.row + row, area.col, area.height - row, area.width)
            made = strips(scene, backend, **how, window=rest, within=interest, stats=stats, progress=self.progress)
            yield from _lowered(made, row)

        return framed(journal.kept(below) if journal else below(0), area, part or self.frame(scene), len(self.table))

    def mark(self, scene: Scene, wanted: Wanted) -> dict[str, Any]:
        """Return all that the map of ``scene`` depends on: two runs with one mark make the same strips."""
        self.settle(scene, wanted)
        fields = set(MapConfig.model_fields) - {"work", "model", "overwrite", "threads", "aoi"}
        return {
            "version": __version__,
            "model": self.digest,
            "scene": [scene.fingerprint, *_file_state(scene.path)],
            "aoi": self.config.aoi and _file_state(self.config.aoi),
            "options": self.config.model_dump(mode="json", include=fields),
            "wanted": list(vars(wanted).values()),
            "pixel_size": self.pixel_size,
        }

    def backend(self, scene: Scene, canvases: Path | None = None) -> Backend:
        """Return what runs the model on ``scene``; its context is kept in the folder ``canvases``.

        Raises:
            ConfigError: an option does not fit the model.
        """
        backend = self._backend(scene, self.settle(scene), compiled=self.config.compile, canvases=canvases)
        if self.config.tta == "none":
            return backend
        from rsdistill.inference.symmetries import D4Backend

        return D4Backend(backend)

    def settle(self, scene: Scene, wanted: Wanted = LABELS) -> Choice:
        """Return what runs the network on ``scene`` and on all that follow; from then on :attr:`config` names it.

        Raises:
            ConfigError: what was named cannot run, or gives other labels than float32 does.
        """
        if not self._settled:
            if self.config.max_memory:
                self.config = self.config.model_copy(update={"tile": self._fitting(scene, wanted, self.config.max_memory).tile})
            choice = self.earlier if self.earlier and self.config.backend == "auto" else self._settle(scene)
            self.config, self._settled = self.config.model_copy(update=choice._asdict()), True
        return Choice(cast(Engine, self.config.backend), self.config.precision or "float32")

    def _settle(self, scene: Scene) -> Choice:
        def some() -> list[Sample]:
            windows = self.model.windows(self.config.tile, self.config.margin)
            return samples(scene, self.bands(scene), self._job(scene, windows))

        how: dict[str, Any] = {"on_processor": self.config.backend != "auto" or self._on_processor, "progress": self.progress}
        return settled(self.model, self.config, some, partial(self._backend, scene), **how)

    def _fitting(self, scene: Scene, wanted: Wanted, megabytes: int) -> Windows:
        """Return the windows to use within so much memory."""

        def needed(side: int) -> int:
            job = self._job(scene, Windows(side, windows.margin))
            own = engine_bytes(scene, job, self.bands(scene), len(self.table), self.config.blend, wanted, self.batch)
            return own + network_bytes(self.model, self.batch, job.plan.tile)

        windows = self.model.windows(self.config.tile, self.config.margin)
        found = fitting(megabytes * 1_000_000, windows, self.model.stride, needed)
        if found != windows:
            self.progress.message(f"windows of {found.tile} pixels in place of {windows.tile}, to need less than {megabytes} MB")
        return found

    def _job(self, scene: Scene, windows: Windows) -> Job:
        layout = plan(scene.grid.height, scene.grid.width, windows.tile, windows.margin, self.model.stride)
        return Job.of(layout, self.area(scene, self.interest(scene)), self.config.blend)

    def _backend(self, scene: Scene, choice: Choice, *, compiled: bool, canvases: Path | None = None) -> Backend:
        how: dict[str, Any] = {"device": self.config.device, "threads": self.config.threads, "progress": self.progress}
        return backend_for(self.model, scene, self.bands(scene), choice=choice, compiled=compiled, canvases=canvases, **how)

    @property
    def batch(self) -> int:
        """How many windows pass the network at once."""
        return self.config.batch or (CPU_BATCH if self._on_processor else ACCELERATOR_BATCH)

    @property
    def _on_processor(self) -> bool:
        if self.model.network is None:
            return True
        from rsdistill.inference.torch_backend import find_device

        return find_device(self.config.device).type == "cpu"

    def _check(self, scene: Scene) -> None:
        bands = self.bands(scene)
        check_type(scene, self.card, self.path)
        if not scene.grid.georeferenced:
            self._without_crs(scene)
        if not self.config.bands:
            for note in band_notes(scene, self.card, bands):
                self.progress.message(note)
            for doubt in name_doubts(scene, self.card, self.path, bands):
                self.progress.warn(doubt)
        for doubt in (*size_doubts(scene, self.card, self.path), *scene.ignored_sidecars):
            self.progress.warn(doubt)

    def _without_crs(self, scene: Scene) -> None:
        if self.config.require_crs:
            raise SceneError(f"{scene.path} has no CRS", hint="set it with gdal_edit.py -a_srs, or leave --require-crs out")
        if not self._placeless:
            self.progress.warn(f"{scene.path} has no CRS: such scenes are taken in pixel coordinates")
        self._placeless = True


def _file_state(path: Path) -> tuple[int, int]:
    """Return a file's length and date; zeros for what is no local file."""
    if not path.is_file():
        return 0, 0
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _lowered(strips: Iterator[Strip], rows: int) -> Iterator[Strip]:
    for strip in strips:
        yield strip._replace(row=strip.row + rows)
        del strip  # not kept while the next one is filled
