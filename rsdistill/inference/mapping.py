"""Scenes through a model: what is checked before, which windows, which backend; strips come out."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rsdistill import __version__
from rsdistill.errors import ConfigError, SceneError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.interest import Interest
from rsdistill.geo.resampling import ResampledScene
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.windows import Grid, Window
from rsdistill.inference.backends import Backend
from rsdistill.inference.blending import Strip, Wanted
from rsdistill.inference.engine import Stats, strips
from rsdistill.inference.journal import Journal
from rsdistill.inference.loading import Model, backend_for, load, read_model_card
from rsdistill.inference.products import framed
from rsdistill.inference.settings import MapConfig
from rsdistill.reporting import SILENT, Progress

PIXEL_SIZE_RATIO = 1.2
"""A pixel size that differs from the card's by more is worth a warning."""
METRES_A_DEGREE = 111_320.0
LABELS = Wanted()
CPU_BATCH, ACCELERATOR_BATCH = 2, 16
"""Windows at once: on the processor, more make nothing faster."""


class Mapper:
    """A model and how it is to be used, for any number of scenes; the network is loaded when the first is mapped."""

    def __init__(self, config: MapConfig, model: Path, progress: Progress = SILENT, *, pixel_size: float | None = None) -> None:
        """Read the card of the model file ``model``.

        Args:
            config: how scenes are mapped.
            model: a model file.
            progress: told of notes and windows.
            pixel_size: scenes are resampled to it, in units of their CRS.

        Raises:
            CheckpointError: it is none of ours.
        """
        self.config, self.path, self.progress = config, model, progress
        self._pixel_size = pixel_size
        self.card = read_model_card(model)
        self.table = ClassTable.from_card([dict(entry) for entry in self.card.classes], self.card.ignore)

    @cached_property
    def model(self) -> Model:
        """The loaded model."""
        return load(self.path)

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
            if self._pixel_size:
                scene = ResampledScene(scene, self._pixel_size)
            self._check(scene)
        except BaseException:
            scene.close()
            raise
        return scene

    def bands(self, scene: Scene) -> tuple[int, ...]:
        """Return the bands of ``scene`` that the model reads, 1-based.

        Raises:
            SceneError: with both numbers, where it has not enough of them.
            ConfigError: more or fewer bands were named than the model reads.
        """
        wanted: Sequence[int | str] = self.config.bands or self.card.bands
        if len(wanted) != len(self.card.bands):
            raise ConfigError(f"{len(wanted)} bands are named, {self.path} reads {len(self.card.bands)}", hint="name them in its order")
        if not self.config.bands and scene.count < max(self.card.bands):
            listed = ", ".join(map(str, self.card.bands))
            raise SceneError(
                f"{scene.path} has {scene.count} bands, {self.path} reads bands {listed}", hint="--bands says which bands to read instead"
            )
        return scene.bands(wanted)

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
        self, scene: Scene, wanted: Wanted = LABELS, stats: Stats | None = None, journal: Journal | None = None
    ) -> Iterator[Strip]:
        """Map ``scene`` and yield strips that cover :meth:`frame` from top to bottom, counted from its corner.

        Args:
            scene: from :meth:`open`.
            wanted: what strips carry beside labels.
            stats: filled while the strips are made.
            journal: keeps the strips, and gives back those that an earlier run kept.

        Raises:
            ConfigError: an option does not fit the model or the scene.
        """
        config, interest = self.config, self.interest(scene)
        area, windows, backend = self.area(scene, interest), self.model.windows(config.tile, config.margin), self.backend(scene)

        def below(row: int) -> Iterator[Strip]:
            """Map what lies below the first ``row`` rows of the area."""
            if row == area.height:
                return
            for strip in strips(
                scene,
                backend,
                bands=self.bands(scene),
                tile=windows.tile,
                margin=windows.margin,
                batch=config.batch or self._default_batch(),
                blend=config.blend,
                confidence=wanted.confidence,
                probabilities=wanted.probabilities,
                window=Window(area.row + row, area.col, area.height - row, area.width),
                within=interest,
                stats=stats,
                progress=self.progress,
            ):
                yield strip._replace(row=strip.row + row)

        found = journal.kept(below) if journal else below(0)
        return framed(found, area, self.frame(scene), len(self.table))

    def mark(self, scene: Scene, wanted: Wanted) -> dict[str, Any]:
        """Return all that the map of ``scene`` depends on: two runs with one mark make the same strips."""
        fields = set(MapConfig.model_fields) - {"work", "model", "overwrite", "threads"}
        return {
            "version": __version__,
            "model": self.digest,
            "scene": [scene.fingerprint, *_file_state(scene.path)],
            "aoi": self.config.aoi and _file_state(self.config.aoi),
            "options": self.config.model_dump(mode="json", include=fields),
            "wanted": list(vars(wanted).values()),
            "pixel_size": self._pixel_size,
        }

    def backend(self, scene: Scene) -> Backend:
        """Return what runs the model on ``scene``.

        Raises:
            ConfigError: turned windows were asked for, of a network that reads the scene's context.
        """
        config = self.config
        backend = backend_for(
            self.model, scene, self.bands(scene), device=config.device, precision=config.precision, threads=config.threads
        )
        if config.tta == "none":
            return backend
        if self.model.needs_context:
            raise ConfigError(
                f"{self.path} reads the scene's context, which does not turn with a window", hint="leave --tta out, or map with a student"
            )
        from rsdistill.inference.symmetries import D4Backend

        return D4Backend(backend)

    def _default_batch(self) -> int:
        if self.model.network is None:
            return CPU_BATCH
        from rsdistill.inference.torch_backend import find_device

        return CPU_BATCH if find_device(self.config.device).type == "cpu" else ACCELERATOR_BATCH

    def _check(self, scene: Scene) -> None:
        bands = self.bands(scene)
        if self.card.dtype and not np.can_cast(scene.dtype, self.card.dtype, "safe"):
            raise SceneError(
                f"{scene.path} is {scene.dtype}, {self.path} was trained on {self.card.dtype}", hint="bring both to one scale and type"
            )
        if self.config.require_crs and not scene.grid.georeferenced:
            raise SceneError(f"{scene.path} has no CRS", hint="set it with gdal_edit.py -a_srs, or leave --require-crs out")
        if not self.config.bands and len(scene.color_bands) > max(bands):
            listed = ", ".join(map(str, bands))
            self.progress.message(f"{scene.path} has {len(scene.color_bands)} bands; bands {listed} are read (--bands chooses others)")
        self._compare_pixel_size(scene)
        for note in scene.ignored_sidecars:
            self.progress.warn(note)

    def _compare_pixel_size(self, scene: Scene) -> None:
        known, ours = self.card.pixel_size, ground_size(scene.grid)
        if known is None or ours is None:
            return
        theirs = (known, known) if isinstance(known, int | float) else known
        if any(max(a / b, b / a) > PIXEL_SIZE_RATIO for a, b in zip(ours, theirs, strict=True)):
            self.progress.warn(
                f"{scene.path} has pixels of {ours[0]:.3g} m, {self.path} was trained on {theirs[0]:.3g} m: expect a worse map "
                "(--pixel-size resamples)"
            )


def _file_state(path: Path) -> tuple[int, int]:
    """Return a file's length and date; zeros for what is no local file."""
    if not path.is_file():
        return 0, 0
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def ground_size(grid: Grid) -> tuple[float, float] | None:
    """Return the height and width of a pixel in metres, at the middle of ``grid``; None without a CRS."""
    if grid.crs is None:
        return None
    if not grid.crs.is_geographic:
        factor = float(grid.crs.linear_units_factor[1])
        return grid.pixel_size[0] * factor, grid.pixel_size[1] * factor
    a, b, _, d, e, _ = grid.transform[:6]
    shrink = float(np.cos(np.radians((grid.transform @ (grid.width / 2, grid.height / 2))[1])))
    return METRES_A_DEGREE * float(np.hypot(b * shrink, e)), METRES_A_DEGREE * float(np.hypot(a * shrink, d))
