"""A tile set of a million tiles: how long ``distill`` takes to its first step, and what an index reader holds in memory."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rasterio

from rsdistill.commands.tile import tile
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.tile_index import index_path
from rsdistill.geo.tiles import CHUNK

SIDE, ROWS = 64, 1000
READER = """
import json, sys
from pathlib import Path
import psutil, torch
from rsdistill.data.dataset import BatchSource, Composition
from rsdistill.data.loading import loader, parts_of
from rsdistill.geo.tile_index import load_tile_set
process = psutil.Process()
before = process.memory_info().rss
source = BatchSource(load_tile_set(Path(sys.argv[1])), Composition(4, 2, 0, True), seed=0)
source[0]
here = process.memory_info().rss - before
batches = loader(source, parts_of(range(4)), workers=1)
next(batches)
worker = process.children()[0].memory_full_info().uss
print(json.dumps({"main": here / 1e6, "worker": worker / 1e6}))
"""
START = """
import json, os, sys, time
began = time.time()
from rsdistill.commands.distill import distill
from rsdistill.training.loop import Fit
def first(self, raws):
    print(json.dumps({"wall": time.time() - began, "cpu": time.process_time()}), flush=True)
    os._exit(0)
Fit._train_step = first
distill(tiles=sys.argv[1], work=sys.argv[2], method="ce", student="small", device="cpu")
"""


@pytest.fixture(scope="module", params=["tiles.gpkg", "tiles.parquet"])
def million(request, tmp_path_factory):
    """Return a tile set whose one scene is a sparse raster of 64 000 x 64 000 pixels, with either kind of index."""
    folder = tmp_path_factory.mktemp("million")
    drawn = write_land_cover(folder, size=512, seed=3)
    tile(scenes=[drawn.scene], labels=[drawn.labels], classes=drawn.classes, work=folder / "work", tile=SIDE)
    tiles = folder / "work" / "tiles"
    card = json.loads((tiles / "tileset.json").read_text())
    entry = card["scenes"][0]
    for key, large, size in (
        ("path", folder / "large.tif", SIDE * ROWS),
        ("label", tiles / "labels" / "large.tif", SIDE * ROWS),
        ("context", tiles / "context" / "large.tif", SIDE * ROWS // 8),
        ("context_label", tiles / "context" / "large.labels.tif", SIDE * ROWS // 8),
    ):
        with rasterio.open(tiles / entry[key]) as small:
            profile = {name: small.profile[name] for name in ("driver", "count", "dtype", "nodata", "crs", "transform")}
        with rasterio.open(large, "w", height=size, width=size, tiled=True, sparse_ok=True, compress="deflate", **profile):
            pass
        entry[key] = str(large) if key == "path" else str(large.relative_to(tiles))
    entry |= {"height": SIDE * ROWS, "width": SIDE * ROWS, "nearby": None}
    (tiles / "tileset.json").write_text(json.dumps(card))
    (tiles / "tiles.gpkg").unlink()
    {"tiles.gpkg": write_package, "tiles.parquet": write_parquet}[request.param](tiles / request.param, entry["name"])
    return tiles


def write_package(path, scene):
    columns = "fid INTEGER PRIMARY KEY, geom BLOB, scene TEXT, row, col, height, width, split TEXT, labelled"
    rows = (
        (None, b"polygon" * 16, scene, SIDE * (k // ROWS), SIDE * (k % ROWS), SIDE, SIDE, "val" if k % 1000 == 0 else "train", 1)
        for k in range(ROWS**2)
    )
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE tiles ({columns})")
        database.executemany("INSERT INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def write_parquet(path, scene):
    places = np.arange(ROWS**2)
    table = {
        "geometry": pyarrow.array([b"polygon" * 16] * len(places)),
        "scene": pyarrow.array([scene] * len(places)),
        "row": SIDE * (places // ROWS),
        "col": SIDE * (places % ROWS),
        "height": np.full(len(places), SIDE),
        "width": np.full(len(places), SIDE),
        "split": pyarrow.array(np.where(places % 1000, "train", "val")),
        "labelled": np.ones(len(places), bool),
    }
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=CHUNK)


def measured(script, *arguments):
    ended = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.benchmark
def test_an_index_reader_holds_less_than_300_megabytes(million):
    held = measured(READER, million)
    sys.stdout.write(
        f"\n{index_path(million).name} of a million tiles: {held['main']:.0f} MB in the reader, {held['worker']:.0f} MB more a worker\n"
    )
    assert max(held.values()) <= 300


@pytest.mark.benchmark
def test_the_first_step_comes_within_20_seconds(million, tmp_path):
    """Processor time, imports of torch included: the wall clock of a shared machine says more of its other users."""
    taken = measured(START, million, tmp_path)
    sys.stdout.write(f"\n{index_path(million).name}: first step after {taken['wall']:.1f} s, {taken['cpu']:.1f} s of them at work\n")
    assert taken["cpu"] <= 20
