"""Files of polygons: GeoPackage, FlatGeobuf, GeoJSON and GeoParquet, written batch by batch and counted after."""

import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
from numpy.typing import NDArray
from rasterio.crs import CRS

from rsdistill.errors import DiskError, MissingExtraError
from rsdistill.outputs.wkb import Wkb

DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON", ".parquet": "Parquet"}
"""Suffix → what GDAL calls the format; GeoParquet is written without GDAL, whose wheels lack it."""
GEOMETRY = "geom"
_OPTIONS: dict[str, dict[str, Any]] = {
    "GPKG": {"dataset_options": {"VERSION": "1.2"}},  # what QGIS 3.22 reads without a warning
    # longitude and latitude, as the standard demands; nine decimals are a tenth of a millimetre, so that small pixels keep their shape
    "GeoJSON": {"layer_options": {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}},
}
_PLAIN_OPTIONS = _OPTIONS | {"GeoJSON": {}}
"""Without a CRS there is no longitude and latitude."""

Columns = dict[str, NDArray[Any]]


def write_vectors(path: Path, layer: str, crs: CRS | None, batches: Iterable[tuple[Wkb, Columns]], *, final: Path | None = None) -> int:
    """Write polygons and return how many there are.

    Args:
        path: file to make; its suffix, one of :data:`DRIVERS`, picks the format.
        layer: name of the layer.
        crs: of the shapes; None for none.
        batches: shapes and as many values of every column. One batch at least, even if it is empty: it tells the columns' types.
        final: what the file is to become, for messages.

    Raises:
        DiskError: the file could not be written whole.
        MissingExtraError: pyarrow is not installed.
    """
    stream = _Stream(batches)
    try:
        if path.suffix == ".parquet":
            _write_parquet(path, crs, stream)
        else:
            _write_with_gdal(path, layer, crs, stream)
    except Exception as error:
        if stream.error is not None:
            raise stream.error from None
        if isinstance(error, (OSError, RuntimeError, pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError)):
            raise DiskError(f"cannot write {final or path}: {' '.join(str(error).split())}", hint="check space and permission") from error
        raise
    if stream.error is not None:
        raise stream.error
    if count_features(path, layer) != stream.count:
        raise DiskError(f"{final or path} does not hold all {stream.count} polygons", hint="check the disk's space and health")
    return stream.count


class _Stream:
    """Batches as Arrow record batches."""

    def __init__(self, batches: Iterable[tuple[Wkb, Columns]]) -> None:
        try:
            import pyarrow
        except ImportError:
            raise MissingExtraError("polygons are written through pyarrow, which is not installed", hint="pip install pyarrow") from None
        self._arrow = pyarrow
        self._rest = iter(batches)
        self._first = self._record(*next(self._rest))
        self.schema = self._first.schema
        self.error: BaseException | None = None
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield record batches; what goes wrong meanwhile is kept, because it is lost on the way through Arrow and GDAL."""
        try:
            yield self._counted(self._first)
            for shapes, columns in self._rest:
                if len(shapes):
                    yield self._counted(self._record(shapes, columns))
        except GeneratorExit:  # who was to take them failed, and says why
            raise
        except BaseException as error:
            self.error = error
            raise

    def reader(self) -> Any:
        return self._arrow.RecordBatchReader.from_batches(self.schema, iter(self))

    def _counted(self, batch: Any) -> Any:
        self.count += batch.num_rows
        return batch

    def _record(self, shapes: Wkb, columns: Columns) -> Any:
        text, binary = self._arrow.string(), self._arrow.binary()
        arrays = {
            name: self._arrow.array(values.tolist(), type=text) if values.dtype == object else self._arrow.array(values, from_pandas=True)
            for name, values in columns.items()
        }
        buffers = [None, *map(self._arrow.py_buffer, (shapes.offsets.astype(np.int32), shapes.data))]
        return self._arrow.record_batch({**arrays, GEOMETRY: self._arrow.Array.from_buffers(binary, len(shapes), buffers)})


def _write_with_gdal(path: Path, layer: str, crs: CRS | None, stream: _Stream) -> None:
    driver = DRIVERS[path.suffix]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.write_arrow(
            stream.reader(),
            path,
            layer=layer,
            driver=driver,
            geometry_name=GEOMETRY,
            geometry_type="Polygon",
            crs=None if crs is None else crs.to_wkt(),
            **(_PLAIN_OPTIONS if crs is None else _OPTIONS).get(driver, {}),
        )


def _write_parquet(path: Path, crs: CRS | None, stream: _Stream) -> None:
    """Write GeoParquet 1.1."""
    from pyarrow import parquet

    projjson = None if crs is None else pyproj.CRS.from_wkt(crs.to_wkt()).to_json_dict()
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": projjson, "orientation": "counterclockwise"}
    geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
    with parquet.ParquetWriter(path, stream.schema.with_metadata({"geo": json.dumps(geo)}), compression="zstd") as writer:
        for batch in stream:
            writer.write_batch(batch.replace_schema_metadata({"geo": json.dumps(geo)}))


def count_features(path: Path, layer: str) -> int:
    """Return how many polygons the finished file holds: GDAL does not report every write that a full disk swallowed."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    return int(pyogrio.read_info(path, layer=layer, force_feature_count=True)["features"])
