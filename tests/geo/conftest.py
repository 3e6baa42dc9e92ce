"""Small rasters to read."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

NORTH_UP = Affine(2, 0, 500_000, 0, -2, 4_000_000)
Write = Callable[..., Path]


@pytest.fixture
def write_raster(tmp_path: Path) -> Write:
    """Write (C, h, w) values as a GeoTIFF in a UTM zone, 2 m a pixel; ``crs=None, transform=None`` writes it without a place."""

    def write(name: str, values: Any, *, mask: Any = None, scales: Any = None, descriptions: Any = None, **profile: Any) -> Path:
        values = np.atleast_3d(np.asarray(values).T).T if np.ndim(values) == 2 else np.asarray(values)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": NORTH_UP, **profile}
        count, height, width = values.shape
        with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **profile) as dataset:
                dataset.write(values)
                if mask is not None:
                    dataset.write_mask(mask)
                if scales is not None:
                    dataset.scales, dataset.offsets = scales
                for band, text in enumerate(descriptions or (), start=1):
                    dataset.set_band_description(band, text)
        return path

    return write
