"""Hostile files and names: nothing is contacted, nothing is executed, nothing swells; work is done, or refused in one line."""

import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rasterio
from harness import GRID, ended, litter, noise, place_of, write_linear, write_raster


def refused(run, *says, code=2):
    assert (run.code, run.out) == (code, ""), (run.out, run.err)
    assert "Traceback" not in run.err
    assert run.line.startswith("rsdistill: ")
    assert run.line.endswith(")")
    assert all(part in run.line for part in says), run.line


def vrt(folder, source, *, name="v.vrt", relative=1, extra=""):
    path = folder / name
    path.write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64">'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>'
            f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand></SimpleSource>{extra}</VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    return path


@pytest.fixture
def listener():
    """A server on this machine that must never be called; yields its address and the calls it got."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        calls, closing = [], threading.Event()

        def listen():
            while not closing.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                calls.append(connection)
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", calls
        closing.set()
        thread.join()


@pytest.mark.parametrize("allow", [(), ("--allow-vrt",)])
@pytest.mark.parametrize("source", ["/etc/passwd", "../s.tif", "v.vrt", "/vsicurl/http://{address}/s.tif", "http://{address}/s.tif"])
def test_a_vrt_reaches_nothing_outside_its_folder(world, tmp_path, listener, source, allow):
    address, calls = listener
    write_raster(tmp_path / "s.tif", noise())
    inside = tmp_path / "in"
    inside.mkdir()
    path = vrt(inside, source.format(address=address), relative=0 if source.startswith("/etc") else 1)
    for renamed in (path, path.rename(inside / "v.tif")):
        refused(ended("predict", renamed, "--work", world.work, "--out", tmp_path / "m.tif", *allow), "v.")
    assert calls == []


def test_a_vrt_of_its_own_folder_is_read_when_it_is_allowed(world, tmp_path):
    write_raster(tmp_path / "s.tif", noise())
    refused(ended("predict", vrt(tmp_path, "s.tif"), "--work", world.work, "--out", tmp_path / "m.tif"), "--allow-vrt")
    run = ended("predict", tmp_path / "v.vrt", "--allow-vrt", "--work", world.work, "--out", tmp_path / "m.tif", "-q")
    assert run.code == 0, run.err


def test_a_vrt_runs_no_code(world, tmp_path):
    write_raster(tmp_path / "s.tif", noise())
    path = vrt(tmp_path, "s.tif", extra="<PixelFunctionType>os.system</PixelFunctionType>")
    refused(ended("predict", path, "--allow-vrt", "--work", world.work, "--out", tmp_path / "m.tif"), "pixel function")


@pytest.mark.parametrize(
    "text",
    [
        '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><VRTDataset>&c;</VRTDataset>',
        "<VRTDataset" + "<a>" * 100_000,
        "<VRTDataset><GDALWarpOptions><SourceDataset>/etc/passwd</SourceDataset></GDALWarpOptions></VRTDataset>",
        '<GDAL_WMS><Service name="WMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>',
    ],
)
def test_hostile_xml_is_refused(world, tmp_path, text):
    (tmp_path / "v.vrt").write_text(text)
    refused(ended("predict", tmp_path / "v.vrt", "--allow-vrt", "--work", world.work, "--out", tmp_path / "m.tif"), "v.vrt")


@pytest.mark.parametrize(
    "url", ["http://{address}/s.tif", "/vsicurl/http://{address}/s.tif", "WMS:http://{address}/", "/vsizip/a.zip/s.tif"]
)
def test_an_address_is_not_called_without_permission(world, tmp_path, listener, url):
    address, calls = listener
    for command in ("predict", "info", "check"):
        more = ["--work", world.work, "--out", tmp_path / "m.tif"] if command == "predict" else []
        refused(ended(command, url.format(address=address), *more), "s.tif" if "s.tif" in url else "WMS")
    assert calls == []


@pytest.mark.parametrize("beside", ["s.tif.ovr", "s.tif.msk", "s.tif.aux.xml"])
def test_a_sidecar_calls_nobody(world, tmp_path, listener, beside):
    address, calls = listener
    scene = write_raster(tmp_path / "s.tif", noise())
    if beside.endswith(".xml"):
        metadata = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/http://{address}/o.tif</MDI></Metadata>'
        (tmp_path / beside).write_text(f"<PAMDataset>{metadata}</PAMDataset>")
    else:
        vrt(tmp_path, f"/vsicurl/http://{address}/s.tif", name=beside)
    run = ended("predict", scene, "--work", world.work, "--out", tmp_path / "m.tif")
    assert run.code == 0, run.err
    assert beside.endswith(".ovr") or f"{beside} is ignored" in run.err
    assert calls == []


def test_stale_sidecars_of_an_older_result_are_gone(world, tmp_path):
    scene = write_raster(tmp_path / "s.tif", noise())
    precious = write_raster(tmp_path / "precious.tif", noise())
    before = precious.read_bytes()
    out = tmp_path / "m.tif"
    write_raster(out, noise(1))
    for suffix in (".ovr", ".msk"):
        vrt(tmp_path, "precious.tif", name=f"m.tif{suffix}")
    run = ended("predict", scene, "--work", world.work, "--out", out, "--overwrite", "-q")
    assert run.code == 0, run.err
    assert not (tmp_path / "m.tif.ovr").exists()
    assert not (tmp_path / "m.tif.msk").exists()
    assert precious.read_bytes() == before


NAMES = [
    "with space",
    "ünïcödé 地図",
    "st*r[1]?",
    "$(touch hacked)",
    "`touch hacked`",
    "; touch hacked",
    "new\nline",
    "-rf",
    "{stem}",
    "%s%n",
    "n" * 240,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_only_names(world, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    write_raster(folder / f"{name}.tif", noise())
    outs = [option for suffix in (".tif", ".gpkg", ".png") for option in ("--out", tmp_path / "out" / f"{name.replace('{', '(')}{suffix}")]
    run = ended("predict", folder, "--work", world.work, *outs, "-q")
    assert run.code == 0, run.err
    assert {path.suffix for path in (tmp_path / "out").iterdir()} >= {".tif", ".gpkg", ".png", ".qml", ".xml", ".toml"}
    assert litter(tmp_path) == []
    assert not (tmp_path / "hacked").exists()


def test_names_are_only_names_in_tile_sets_and_reports(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        apart = {"transform": GRID * GRID.translation(100 * number, 0)}
        write_raster(folder / f"{name[:200]}.tif", noise(), **apart)
        write_raster(folder / f"{name[:200]}_label.tif", np.ones((64, 64), np.uint8), **apart)
    runs = [
        ["tile", folder, "--classes", world.classes, "--tile", 32, "--work", tmp_path / "w", "--chips", "-q"],
        ["distill", "--work", tmp_path / "w", "--method", "ce", "--student", "linear", "--steps", 1, "--calibrate", 0, "-q"],
        ["evaluate", "--work", tmp_path / "w", "-q"],
        ["check", tmp_path / "w" / "tiles", "-q"],
    ]
    for arguments in runs:
        run = ended(*arguments)
        assert run.code == 0, (arguments[0], run.err)
    assert litter(tmp_path) == []
    assert not list(tmp_path.rglob("hacked"))


def test_a_name_cannot_steer_the_terminal(tmp_path):
    run = ended("info", tmp_path / "\x1b[2J\rnone.tif")
    refused(run, "none.tif")
    assert "\x1b" not in run.err
    assert "\r" not in run.err


def tiff(path, height, width, *, rows=None, bits=8, compression=1):
    """Write the header of a one-band TIFF that claims ``height`` x ``width`` pixels, and a few bytes of pixels."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 4, 1, rows or height), (279, 4, 1, 1 << 20)]
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(b"II*\x00" + struct.pack("<I", 1032) + bytes(1024) + struct.pack("<H", len(entries)) + fields + bytes(4))
    return path


@pytest.mark.parametrize(
    ("height", "width", "rows"),
    [(10**6, 10**6, 1), (2**31 - 1, 1, None), (1, 2**31 - 1, None), (2**31 - 1, 2**31 - 1, 1), (70_000, 70_000, None)],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(world, tmp_path, height, width, rows):
    write_linear(tmp_path / "one.safetensors", bands=1)
    path = tiff(tmp_path / "huge.tif", height, width, rows=rows)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for command in ("info", "check", "predict"):
        more = ["--model", tmp_path / "one.safetensors", "--out", tmp_path / "m.tif"] if command == "predict" else []
        run = ended(command, path, *more)
        refused(run, "huge.tif")
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10
    assert not (tmp_path / "m.tif").exists()


def test_a_header_that_claims_terabytes_of_weights(world, tmp_path):
    header = {"weight": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
    content = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    refused(ended("predict", world.scene, "--model", tmp_path / "m.safetensors", "--out", tmp_path / "m.tif"), "m.safetensors")


def test_class_names_cannot_write_into_a_report(world, tmp_path):
    table = world.classes.read_text().replace('"water"', '"<script>alert(1)</script>"')
    (tmp_path / "classes.toml").write_text(table)
    arguments = ["--labels", world.labels, "--classes", tmp_path / "classes.toml", "--out", tmp_path / "report"]
    predicted = ended("predict", world.scene, "--work", world.work, "--out", tmp_path / "m.tif", "-q")
    assert predicted.code == 0, predicted.err
    run = ended("evaluate", "--mask", tmp_path / "m.tif", *arguments, "-q")
    assert run.code == 0, run.err
    assert "<script>alert" not in (tmp_path / "report" / "report.html").read_text()


ENVIRONMENT = {"LANG": "C", "LC_ALL": "C", "TZ": "Pacific/Apia", "COLUMNS": "20", "TMPDIR": "/nonexistent", "HOME": ""}


def test_closed_streams_and_a_bare_environment_change_no_pixel(world, tmp_path):
    """The first file that is opened takes the number of a closed stream: messages must not end up in it."""
    expected = ended("predict", world.scene, "--work", world.work, "--out", tmp_path / "a.tif", "-q")
    assert expected.code == 0, expected.err
    command = f'"{sys.executable}" -m rsdistill predict "{world.scene}" --work "{world.work}" --out "{tmp_path}/b.tif" <&- >&- 2>&-'
    environment = {name: value for name, value in (os.environ | ENVIRONMENT).items() if name != "HOME"}
    run = subprocess.run(["/bin/sh", "-c", f"umask 027; {command}"], env=environment, check=False, timeout=240)
    assert run.returncode == 0
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert (tmp_path / "b.tif").stat().st_mode & 0o777 == 0o640
    assert litter(tmp_path) == []


def test_a_reader_that_has_had_enough_is_no_fault(world):
    command = f'"{sys.executable}" -m rsdistill info "{world.scene}" --json -q | true; exit "${{PIPESTATUS[0]}}"'
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=240)
    assert (run.returncode, run.stderr) == (0, "")


PEAK = """
import sys
from pathlib import Path
from rsdistill.cli import run
code = run(sys.argv[1:])
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak_of(*arguments):
    """Run a command in a process of its own and return the most KiB that it had resident; getrusage would begin with this one's."""
    run = subprocess.run([sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process")
def test_a_sparse_scene_is_tiled_in_bounded_memory(world, tmp_path):
    """A hundred thousand columns."""
    place = place_of(world)
    layout = {"driver": "GTiff", "height": 10_000, "width": 100_000, "count": 3, "dtype": "uint8", "tiled": True, "sparse_ok": True}
    with rasterio.open(tmp_path / "s.tif", "w", nodata=0, compress="deflate", bigtiff="yes", **place, **layout) as file:
        file.write(noise(3, 2048, 2048), window=rasterio.windows.Window(51_200, 5_120, 2048, 2048))
    with rasterio.open(tmp_path / "s_label.tif", "w", nodata=0, compress="deflate", **place, **(layout | {"count": 1})) as file:
        file.write(np.full((1, 2048, 2048), 2, np.uint8), window=rasterio.windows.Window(51_200, 5_120, 2048, 2048))
    arguments = ["tile", tmp_path / "s.tif", "--classes", world.classes, "--out", tmp_path / "tiles", "-q"]
    assert peak_of(*arguments) < 1536 << 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process")
def test_a_sparse_scene_of_ten_gigapixels_is_mapped_in_bounded_memory(world, tmp_path):
    side = 100_000
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "bigtiff": "yes", "compress": "deflate"}
    with rasterio.open(
        tmp_path / "s.tif", "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8", nodata=0, **place_of(world), **layout
    ) as file:
        file.write(np.full((1, 512, 512), 7, np.uint8), window=rasterio.windows.Window(51_200, 51_200, 512, 512))
    write_linear(tmp_path / "one.safetensors", bands=1)
    predict = ["predict", tmp_path / "s.tif", "--model", tmp_path / "one.safetensors", "--out", tmp_path / "m.tif", "-q"]
    assert peak_of(*predict) < 1536 << 10  # half of it are the libraries
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert (mask.read(1, window=rasterio.windows.Window(51_100, 51_100, 712, 712)) != 255).sum() == 512 * 512
