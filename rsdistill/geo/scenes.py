"""One georeferenced raster file: its header, and its pixels window by window with their validity."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as Area

from rsdistill.errors import SceneError, nearest
from rsdistill.geo.listings import named_by
from rsdistill.geo.opening import open_sealed, refuse_unrectified, sealed_reading, twice
from rsdistill.geo.sidecars import Sidecars, read_sidecars
from rsdistill.geo.sources import RASTER_SUFFIXES, check_source, is_remote
from rsdistill.geo.windows import Grid, Window
from rsdistill.reporting import SILENT, Progress

_DIGEST_BYTES = 1 << 20


class Scene:
    """A raster, opened header first; a context manager that pickles as its path and options.

    Args:
        path: a raster file of a known kind.
        nodata: nodata for bands that declare none: one value, or one a band.
        allow_vrt: take a VRT whose sources lie in its folder.
        allow_remote: take a URL.

    Raises:
        SceneError: the file cannot be taken; says why.
    """

    def __init__(
        self, path: Path | str, *, nodata: Sequence[float] | None = None, allow_vrt: bool = False, allow_remote: bool = False
    ) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        self._options: dict[str, Any] = {"nodata": nodata, "allow_vrt": allow_vrt, "allow_remote": allow_remote}
        self._source = check_source(path, allow_vrt=allow_vrt, allow_remote=allow_remote)
        self._sidecars = Sidecars() if is_remote(path) else read_sidecars(self.path)
        self._handles: tuple[int, Any, Any] | None = None
        try:
            self._check()
        except SceneError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.path, self._options)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handles is not None and self._handles[0] == os.getpid():
            for handle in filter(None, self._handles[1:]):
                handle.close()
        self._handles = None

    def reopen(self) -> "Scene":
        """Another Scene on the same file, for another thread: GDAL's handles are not shared between threads."""
        return _rebuild(self.path, self._options)

    @cached_property
    def grid(self) -> Grid:
        """Size, CRS and transform; the transform is the identity where nothing is known."""
        dataset = self._open()[0]
        transform = dataset.transform
        if transform.is_identity and self._sidecars.transform is not None:
            transform = self._sidecars.transform
        return Grid(dataset.height, dataset.width, dataset.crs or self._sidecars.crs, transform)

    @cached_property
    def count(self) -> int:
        """Bands in the file, an alpha band included."""
        return int(self._open()[0].count)

    @cached_property
    def dtype(self) -> str:
        """Type of what :meth:`read` returns: the widest of the bands', or float32 where a band has a scale or offset."""
        if any(pair != (1, 0) for pair in self._scaling):
            return "float32"
        return str(np.result_type(*self._open()[0].dtypes))

    @cached_property
    def descriptions(self) -> tuple[str | None, ...]:
        """Name of every band, where the file has one."""
        return tuple(self._open()[0].descriptions)

    @cached_property
    def nodata(self) -> tuple[float | None, ...]:
        """Nodata of every band: declared in the file, else beside it, else given."""
        given, bands = self._options["nodata"], len(self.color_bands)
        if given is not None and len(given) not in (1, bands, self.count):
            raise SceneError(f"{self.path} has {bands} bands, but {len(given)} nodata values were given", hint="give one, or one a band")
        given = [*([None] * self.count if given is None else given * self.count if len(given) == 1 else given), None]
        beside = [*self._sidecars.nodata, *[None] * self.count]
        wanted = zip(self._open()[0].nodatavals, beside, given, strict=False)
        return tuple(next((value for value in values if value is not None), None) for values in wanted)

    @cached_property
    def block_shape(self) -> tuple[int, int]:
        """Height and width of the pieces the file is stored in."""
        height, width = self._open()[0].block_shapes[0]
        return int(height), int(width)

    @cached_property
    def color_bands(self) -> tuple[int, ...]:
        """1-based numbers of the bands that are not alpha."""
        return tuple(i + 1 for i, kind in enumerate(self._open()[0].colorinterp) if kind != ColorInterp.alpha)

    @cached_property
    def palette(self) -> dict[int, tuple[int, int, int]] | None:
        """Red, green, blue of every value, where pixels are numbers of colours; None where they are intensities."""
        dataset = self._open()[0]
        if ColorInterp.palette not in dataset.colorinterp:
            return None
        return {value: (color[0], color[1], color[2]) for value, color in dataset.colormap(1).items()}

    @property
    def ignored_sidecars(self) -> tuple[str, ...]:
        """A sentence for every file beside the scene that was not trusted."""
        return self._sidecars.ignored

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the file's length and its first and last MiB; does not depend on its name or date."""
        digest = hashlib.sha256()
        if is_remote(self.path):
            digest.update(repr((str(self.path), self.grid)).encode())
        else:
            size = self.path.stat().st_size
            digest.update(str(size).encode())
            with self.path.open("rb") as file:
                digest.update(file.read(_DIGEST_BYTES))
                file.seek(max(0, size - _DIGEST_BYTES))
                digest.update(file.read(_DIGEST_BYTES))
        return digest.hexdigest()[:16]

    def bands(self, wanted: Sequence[int | str] | None = None) -> tuple[int, ...]:
        """1-based numbers of the wanted bands, given by number or description; all but alpha without a wish.

        Raises:
            SceneError: a number the scene does not have, or a name no band has.
        """
        return tuple(self._band(one) for one in wanted) if wanted else self.color_bands

    def read(self, window: Window, bands: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read the pixels of a window that lies inside the scene.

        A pixel is invalid where all the bands read are nodata, any of them is not finite, the dataset's mask is 0, or alpha is 0.

        Args:
            window: (h, w) pixels inside the scene.
            bands: 1-based numbers of C bands.

        Returns:
            (C, h, w) values of :attr:`dtype`, 0 where invalid; (h, w) bool, True where valid.

        Raises:
            SceneError: the rows cannot be decoded.
            ValueError: the window leaves the scene.
        """
        if window.intersection(self.grid.window) != window or 0 in (window.height, window.width):
            raise ValueError(f"{window} is not inside {self.path}")
        area = Area(window.col, window.row, window.width, window.height)
        with sealed_reading(self.path, window):
            raw = twice(lambda: self._open()[0].read(list(bands), window=area), self.close)
            valid = twice(lambda: self._unmasked(area), self.close)
        self._drop_nodata(valid, raw, bands)
        values = self._scaled(raw, bands)
        if not valid.all():
            np.copyto(values, 0, where=~valid)
        return values, valid

    def strips(self, bands: Sequence[int], height: int) -> Iterator[tuple[Window, NDArray[Any], NDArray[np.bool_]]]:
        """Yield (window, values, valid) of whole rows, ``height`` at a time, from the top."""
        for row in range(0, self.grid.height, height):
            window = Window(row, 0, min(height, self.grid.height - row), self.grid.width)
            yield window, *self.read(window, bands)

    @cached_property
    def _scaling(self) -> tuple[tuple[float, float], ...]:
        dataset = self._open()[0]
        return tuple(zip(dataset.scales, dataset.offsets, strict=True))

    def _band(self, wanted: int | str) -> int:
        names = [name for name in self.descriptions if name]
        if isinstance(wanted, str) and wanted in names:
            return self.descriptions.index(wanted) + 1
        if isinstance(wanted, str) and not wanted.lstrip("-").isdigit():
            known = f"it has {self.count} bands: " + (", ".join(names) or "none has a name")
            raise SceneError(f"{self.path} has no band called '{wanted}'{nearest(wanted, names)}", hint=known)
        if not 1 <= int(wanted) <= self.count:
            raise SceneError(f"{self.path} has {self.count} bands, but band {wanted} was asked for", hint="bands count from 1")
        return int(wanted)

    def _drop_nodata(self, valid: NDArray[np.bool_], raw: NDArray[Any], bands: Sequence[int]) -> None:
        """Clear ``valid`` where all bands are nodata or any is not finite."""
        layers = [_equals(raw[i], self.nodata[band - 1]) for i, band in enumerate(bands)]
        empty = [layer for layer in layers if layer is not None]
        if len(empty) == len(bands):
            valid &= ~np.logical_and.reduce(empty)
        if np.issubdtype(raw.dtype, np.floating):
            valid &= np.isfinite(raw).all(axis=0)

    def _unmasked(self, area: Area) -> NDArray[np.bool_]:
        """Where neither the mask in the file, nor the one beside it, nor an alpha band says that nothing is there."""
        dataset, beside = self._open()
        flags = dataset.mask_flag_enums[0]
        valid = np.ones((int(area.height), int(area.width)), dtype=bool)
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            valid &= dataset.read_masks(1, window=area) > 0
        if beside is not None:
            valid &= beside.read(1, window=area) > 0
        for alpha in set(range(1, self.count + 1)) - set(self.color_bands):
            valid &= dataset.read(alpha, window=area) > 0
        return valid

    def _scaled(self, raw: NDArray[Any], bands: Sequence[int]) -> NDArray[Any]:
        values = raw.astype(self.dtype, copy=False)
        for i, band in enumerate(bands):
            scale, offset = self._scaling[band - 1]
            if (scale, offset) != (1, 0):
                values[i] = raw[i] * scale + offset
        return values

    def _open(self) -> tuple[Any, Any]:
        """The dataset and its mask file (or None), opened once a process: handles do not survive a fork."""
        if self._handles is None or self._handles[0] != os.getpid():
            mask = self._sidecars.mask
            self._handles = os.getpid(), open_sealed(self.path, self._source), mask and open_sealed(Path(mask.name), mask)
        return self._handles[1], self._handles[2]

    def _check(self) -> None:
        dataset, mask = self._open()
        if mask is not None and mask.shape != dataset.shape:
            raise SceneError(f"{mask.name} is {mask.shape}, its scene {self.path} is {dataset.shape}", hint="make the mask anew")
        if self.grid.transform.is_identity and not self.grid.georeferenced:
            refuse_unrectified(self.path, dataset)
        values = tuple(self.grid.transform[:6])
        if not all(np.isfinite(values)) or self.grid.transform.determinant == 0:
            raise SceneError(f"{self.path} has a transform without area: {values}", hint="set it with gdal_edit.py -a_ullr")
        _ = self.nodata


def open_scene(path: Path | str, *, nodata: Sequence[float] | None = None, allow_vrt: bool = False, allow_remote: bool = False) -> Scene:
    """Open a scene; see :class:`Scene`."""
    return Scene(path, nodata=nodata, allow_vrt=allow_vrt, allow_remote=allow_remote)


def find_scenes(paths: Sequence[Path], *, progress: Progress = SILENT) -> list[Path]:
    """Return the rasters among ``paths``; a folder stands for its rasters, a listing for what it names. Labels are left out, and said so.

    Raises:
        SceneError: nothing is left.
    """
    files = [file for path in paths for file in named_by(path)]
    labels = [file for file in files if file.stem.endswith("_label")]
    if labels:
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        progress.message(f"labels by their names, not taken as scenes: {labels[0]}{more}")
    found = list(dict.fromkeys(file for file in files if file not in labels))
    if not found:
        named = ", ".join(map(str, paths))
        if labels:
            raise SceneError(f"no scene in {named}", hint="names that end in _label are those of labels: rename a scene of that name")
        raise SceneError(f"no scene in {named}", hint="in folders rasters are found by suffix: " + " ".join(RASTER_SUFFIXES))
    return found


def _rebuild(path: Path, options: dict[str, Any]) -> Scene:
    return Scene(path, **options)


def _equals(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Where ``values`` are ``nodata``, compared in their own type; None where none can be."""
    if nodata is None:
        return None
    if np.isnan(nodata):
        return np.isnan(values) if np.issubdtype(values.dtype, np.floating) else None
    if np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(values.dtype)
        if not (limits.min <= nodata <= limits.max and float(nodata).is_integer()):
            return None
        nodata = int(nodata)
    return np.asarray(values == values.dtype.type(nodata))
