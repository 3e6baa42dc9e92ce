"""A lock on a result's name: held once, named, and taken over from the dead."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from rsdistill.errors import DiskError, LockError
from rsdistill.geo.locking import locked

HOLD = """
import sys, time
from pathlib import Path
from rsdistill.geo.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(result):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(result)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_run_is_told_who_the_first_is(tmp_path):
    with holder(tmp_path / "m.tif") as first:
        with pytest.raises(LockError, match=f"process {first.pid} on {platform.node()}"), locked(tmp_path / "m.tif"):
            pass
        with locked(tmp_path / "other.tif"):
            pass
        first.kill()
    assert (tmp_path / ".m.tif.lock").exists()
    with locked(tmp_path / "m.tif"):
        assert f"process {os.getpid()}" in (tmp_path / ".m.tif.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_one_result_by_two_names_has_one_lock(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with locked(tmp_path / "m.tif"), pytest.raises(LockError), locked(tmp_path / "link" / "m.tif"):
        pass


def test_it_goes_with_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "new" / "m.tif"):
        signal.raise_signal(signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot write"), locked(tmp_path / "file" / "m.tif"):
        pass
