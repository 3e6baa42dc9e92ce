"""What the TIFF library would print by itself, seen at the file descriptor: nothing, and the error comes as an exception."""

import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from rsdistill.geo.libtiff import _FOLDERS

SCRIPT = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from affine import Affine
from rsdistill.errors import DiskError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import LabelRasterWriter

{before}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
table = ClassTable.from_card([{{"id": 1, "name": "a", "color": "#808080"}}, {{"id": 2, "name": "b", "color": "#808080"}}], ())
labels = np.random.default_rng(0).integers(0, 2, (600, 600), np.uint8)
try:
    with LabelRasterWriter(Path(sys.argv[1]), Grid(600, 600, None, Affine.identity()), table) as writer:
        writer.write(0, labels)
except DiskError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize("quietened", [True, False])
def test_a_full_disk_is_told_once_and_not_by_the_library(tmp_path, quietened):
    packages = Path(rasterio.__file__).parents[1]
    if not any((packages / folder).is_dir() for folder in _FOLDERS):
        pytest.skip("this rasterio carries no library of its own")
    before = "" if quietened else "import rsdistill.outputs.cog; rsdistill.outputs.cog.quieten = lambda: None"
    run = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(before=before), str(tmp_path / "m.tif")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert f"cannot write {tmp_path / 'm.tif'}" in done.stdout
    assert ("_tiff" not in done.stderr) is quietened, "and without it, the library would print"
    assert not (tmp_path / "m.tif").exists()
