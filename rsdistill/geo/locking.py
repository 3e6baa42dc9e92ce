"""A lock on a result's name: two runs on one output do not mix, the second is told who the first is."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsdistill.errors import DiskError, LockError
from rsdistill.geo.files import hidden, missing_parents, remove_empty

if sys.platform != "win32":  # which has no such lock: there, two runs on one output are the person's to avoid
    import fcntl

_OWNER_BYTES = 512


@contextmanager
def locked(result: Path) -> Iterator[None]:
    """Hold the name of a file or folder that is about to be made, in a hidden file ``.<name>.lock`` beside it.

    The file says which process of which machine holds it. The lock itself is the kernel's, which lets go when that process ends, however
    it ends: a file that a killed run left is taken over, and is gone when the block is done. Folders above ``result`` are made, and those
    that are then left empty removed.

    Raises:
        LockError: another run holds it; names its process and machine.
        DiskError: the file cannot be written.
    """
    target = result.resolve()
    path, made = hidden(target, ".lock"), missing_parents(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _take(path, target)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}", hint="check space, permission and the folder's name") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        remove_empty(made)


def _take(path: Path, target: Path) -> int:
    """Open and lock the file at ``path``, and sign it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(handle):
            owner = os.read(handle, _OWNER_BYTES).decode(errors="replace").strip()
            os.close(handle)
            raise LockError(f"{target} is being written by {owner or 'another run'}", hint="wait for it, or name another output")
        if os.fstat(handle).st_nlink:  # else its owner has just finished and removed it: ours is a file without a name
            break
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
    except OSError:
        path.unlink(missing_ok=True)
        os.close(handle)
        raise
    return handle


def _lock(handle: int) -> bool:
    """Lock an open file; True also where the file system knows no locks."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
