"""Files and folders that stand under their name whole or not at all."""

import os
import platform
import re
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rsdistill.errors import ConfigError, DiskError, OutputExistsError

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_MAX_NAME_BYTES = 255
_ROOM = 16
"""Bytes that others add to the name of a temporary file."""
_MAX_RESULT_BYTES = _MAX_NAME_BYTES - len(".aux.xml")
"""Of a result's name, so that those of the files beside it fit."""
_STALE_SIDECARS = (".ovr", ".msk")


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse names that cannot take a result.

    Args:
        paths: files that are about to be written.
        overwrite: regular files in their place are to be replaced.

    Raises:
        OutputExistsError: a file stands there without ``overwrite``; a folder or a device stands there in any case.
        ConfigError: a name leaves no room for those of the files beside it.
    """
    for path in paths:
        if len(os.fsencode(path.name)) > _MAX_RESULT_BYTES:
            raise ConfigError(f"{path} is too long a name", hint=f"use one of {_MAX_RESULT_BYTES} bytes at most")
        if path.is_dir():
            raise OutputExistsError(f"{path} is a folder", hint="name a file")
        if path.exists() and not path.is_file():
            raise OutputExistsError(f"{path} is not a regular file", hint="name a file that may be written")
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists", hint="give --overwrite to replace it")


def refuse_existing_in(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Refuse a folder that cannot take results of these names; what else is in it is left alone.

    Raises:
        OutputExistsError: the folder is a file, or a result stands in it as :func:`refuse_existing` says.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file", hint="name a folder")
    refuse_existing([folder / name for name in names], overwrite)


def refuse_existing_folder(folder: Path, overwrite: bool, marker: str) -> None:
    """Refuse a folder that cannot be replaced by a result folder, which is known by the file ``marker`` in it.

    Raises:
        OutputExistsError: a file, somebody else's folder that is not empty, or one of ours without ``overwrite``.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file", hint="name a folder")
    ours = (folder / marker).exists()
    if ours and not overwrite:
        raise OutputExistsError(f"{folder} exists", hint="give --overwrite to replace it")
    if not ours and any(folder.iterdir()):
        raise OutputExistsError(f"{folder} is not empty and holds no {marker}", hint="name another; a foreign folder is never replaced")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it there once the block ends well.

    The temporary file has the suffix of ``path``, is hidden, flushed to disk before the move, and gone after an error. Parent folders
    are made, and gone again after an error. A link is followed, so that its target is what is replaced. Overviews and masks beside an
    older raster of that name are removed: they would lie about the new one. Temporary files that a killed run of this machine left for
    ``path`` are removed.

    Raises:
        DiskError: the folder or the file cannot be written.
    """
    target = path.resolve() if path.is_symlink() else path
    made, partial = missing_parents(target), _partial(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        mode = _fresh_mode(partial)
        yield partial
        _flush(partial)
        partial.chmod(mode)
        for suffix in _STALE_SIDECARS:
            if len(os.fsencode(target.name + suffix)) <= _MAX_NAME_BYTES:
                target.with_name(target.name + suffix).unlink(missing_ok=True)
        partial.replace(target)
        fsync_dir(target.parent)
    except BaseException as error:
        _remove_partial(partial)
        remove_empty(made)
        if isinstance(error, OSError):
            raise _disk_error(target, error) from error
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder`` and move it there, whole, once the block ends well; an older one is replaced.

    After an error the folders above it that were made for it are gone too.

    Raises:
        DiskError: the folder cannot be written.
    """
    target = folder.resolve()
    made, partial, old = missing_parents(target), _partial(target), _partial(target.with_name(target.name + ".old"))
    try:
        _remove_leftovers(target)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            _flush(file)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        fsync_dir(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        _remove_partial(partial)
        remove_empty(made)
        if isinstance(error, OSError):
            raise _disk_error(target, error) from error
        raise


def hidden(path: Path, ending: str) -> Path:
    """Return a hidden name beside ``path`` that tells whose it is, or a number in place of a name that leaves no room for it."""
    name = f".{path.name}{ending}"
    return path.with_name(name if len(os.fsencode(name)) <= _MAX_NAME_BYTES else f".{zlib.crc32(os.fsencode(path.name)):08x}{ending}")


def missing_parents(path: Path) -> list[Path]:
    """The folders above ``path`` that are not there, the nearest first."""
    return [parent for parent in path.parents if not parent.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of ``folders`` that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def fsync_dir(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can."""
    if os.name == "posix":
        _flush(folder)


def _fresh_mode(path: Path) -> int:
    """Return the permissions that a new file gets here; some writers make theirs readable by the owner only."""
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return stat.S_IMODE(mode)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _partial(target: Path) -> Path:
    """The hidden name that ``target`` is written under; it tells host and process, so that a dead run's file is known as such."""
    name = f".{target.stem}.{_HOST}-{os.getpid()}.part{target.suffix}"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES - _ROOM or not re.fullmatch(r"[\w .-]+", name):  # signs that a library may take for its own
        digest = zlib.crc32(os.fsencode(target.stem))
        name = f".{digest:08x}.{_HOST}-{os.getpid()}.part{target.suffix}"
    return target.with_name(name)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed runs of this machine left beside ``target``."""
    mine = _partial(target).name
    shape = re.compile(re.escape(mine).replace(re.escape(f"-{os.getpid()}."), r"-(\d+)\."))
    if not target.parent.is_dir():
        return
    for entry in list(os.scandir(target.parent)):
        found = shape.match(entry.name)
        if found and not _alive(int(found[1])):
            _remove_partial(target.with_name(entry.name))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_partial(partial: Path) -> None:
    """Remove a temporary file or folder, and what GDAL or SQLite put beside it under its name."""
    if not partial.parent.is_dir():
        return
    for entry in list(os.scandir(partial.parent)):
        if entry.name.startswith(partial.name):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _disk_error(target: Path, error: OSError) -> DiskError:
    reason = error.strerror or str(error)
    return DiskError(f"cannot write {target}: {reason}", hint="check space, permission and the folder's name")
