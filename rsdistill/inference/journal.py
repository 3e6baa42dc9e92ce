"""The strips of a map as they are finished, kept on disk, so that a run that was killed goes on where it stopped."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from rsdistill.errors import DiskError, InputError
from rsdistill.geo.files import hidden
from rsdistill.geo.locking import locked
from rsdistill.inference.blending import Strip
from rsdistill.inference.scores import Floats
from rsdistill.outputs.behind import Behind

SHARE_STEPS = 254
NO_SHARE = 255
"""Shares are kept as they will be written, in steps of 1/254, so that a strip from the journal becomes the same bytes."""

_HEAD = struct.Struct("<4sqII")
"""Of a record: marker, first row, length of what follows, its CRC-32."""
_MARK = b"ROW\n"
_RAW = -zlib.MAX_WBITS
"""Deflate without zlib's header and checksum."""


class Journal:
    """A file beside the result that holds every finished strip, each with its checksum; it goes when the map is done.

    A context manager: it holds the result's name locked, keeps the file when the run is interrupted or the machine fails, and removes it
    when the map is finished or was refused.
    """

    def __init__(self, result: Path, mark: dict[str, Any], *, resume: bool) -> None:
        """Name the journal of ``result``.

        Args:
            result: the file that the strips are for.
            mark: all that the map depends on; the strips of a journal with another mark are not used.
            resume: use what an earlier run left.
        """
        self._result = result
        self.path = journal_of(result)
        self.rows = 0
        """Rows that are kept: to begin with, those that an earlier run left."""
        self._mark, self._resume = json.dumps(mark, sort_keys=True, default=str).encode() + b"\n", resume
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(locked(self._result))
            try:
                self._file = stack.enter_context(_open(self.path))
                if not (self._resume and self._file.readline() == self._mark):
                    self._file.seek(0)
                    self._file.truncate()
                    self._file.write(self._mark)
                    self._file.flush()
            except OSError as error:
                raise DiskError(
                    f"cannot write {self.path}: {error.strerror}", hint="check space, permission and the folder's name"
                ) from error
            self._behind = stack.enter_context(Behind())
            self._held = stack.pop_all()
        self._start = self._file.tell()
        for strip in self._records():
            self.rows = strip.row + strip.labels.shape[0]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or issubclass(kind, InputError) or not self.rows:
            self.path.unlink(missing_ok=True)
        self._held.close()

    def kept(self, make: Callable[[int], Iterator[Strip]]) -> Iterator[Strip]:
        """Yield the strips at hand, then those that ``make(row)`` makes for the rows from ``row`` on, each kept before the next but one.

        Raises:
            DiskError: a strip cannot be kept.
        """
        yield from self._records()
        for strip in make(self.rows):
            self._behind(self._keep, strip)
            self.rows = strip.row + strip.labels.shape[0]
            yield strip
            del strip  # not kept while the next one is filled
        self._behind.wait()

    def _keep(self, strip: Strip) -> None:
        planes = [strip.labels, *(_steps(share) for share in (strip.confidence, strip.probabilities) if share is not None)]
        layout = json.dumps([list(plane.shape) for plane in planes]).encode() + b"\n"
        # Labels lie in runs: to look for no other matches is less work, and what comes of it is smaller. The record has a checksum already.
        packer = zlib.compressobj(1, wbits=_RAW, strategy=zlib.Z_RLE)
        pieces = [layout, *(packer.compress(np.ascontiguousarray(plane).data) for plane in planes), packer.flush()]
        check = 0
        for piece in pieces:
            check = zlib.crc32(piece, check)
        try:
            self._file.writelines([_HEAD.pack(_MARK, strip.row, sum(map(len, pieces)), check), *pieces])
            self._file.flush()
        except OSError as error:
            raise DiskError(f"cannot write {self.path}: {error.strerror}", hint="free some space; --resume then goes on") from error

    def _records(self) -> Iterator[Strip]:
        """Yield whole strips from the start of the file; what follows the last of them was torn by a crash and is cut off."""
        self._file.seek(self._start)
        row = 0
        while (end := self._file.tell()) >= 0:
            head = self._file.read(_HEAD.size)
            if len(head) < _HEAD.size or (fields := _HEAD.unpack(head))[:2] != (_MARK, row):
                break
            record = self._file.read(fields[2])
            if len(record) < fields[2] or zlib.crc32(record) != fields[3]:
                break
            strip = _strip(row, record)
            yield strip
            row += strip.labels.shape[0]
        self._file.seek(end)
        self._file.truncate()


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, made where it is missing; what does not fit on the disk is told where it is written, and not once more at the end."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def journal_of(result: Path) -> Path:
    """Return where the journal of ``result`` stands while there is one."""
    return hidden(result, ".journal")


def shards_of(result: Path) -> Path:
    """Return the folder in which a run on workers keeps its shards of ``result`` until that is whole."""
    return hidden(result, ".shards")


STATE = "run.json"
"""File among a run's shards that says what they are shards of; the last that goes when they do."""


def unfinished(result: Path) -> bool:
    """Tell whether a run, by itself or on workers, was interrupted before it was done with ``result``."""
    return journal_of(result).exists() or (shards_of(result) / STATE).exists()


def earlier_mark(result: Path) -> dict[str, Any] | None:
    """Return the mark in the journal that an interrupted run left of ``result``; None where there is none."""
    try:
        with journal_of(result).open("rb") as file:
            mark = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None


def state_of(result: Path) -> dict[str, Any] | None:
    """Return the mark of the interrupted run that was to write ``result``, by itself or on workers; None where there is none."""
    try:
        state = json.loads((shards_of(result) / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return earlier_mark(result)
    return state.get("mark") if isinstance(state, dict) else None


def remove_shards(folder: Path) -> None:
    """Remove the shards of a map that stands, and last what says that there are some: a run that is killed here can be gone on with."""
    for part in folder.iterdir():
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        elif part.name != STATE:
            part.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _strip(row: int, record: bytes) -> Strip:
    layout, _, body = record.partition(b"\n")
    shapes = [tuple(shape) for shape in json.loads(layout)]
    values = np.frombuffer(bytearray(zlib.decompress(body, _RAW)), np.uint8)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    labels, *shares = (part.reshape(shape) for part, shape in zip(np.split(values, ends[:-1]), shapes, strict=True))
    confidence = [_share(share) for share in shares if share.ndim == 2]
    probabilities = [_share(share) for share in shares if share.ndim == 3]
    return Strip(row, labels, confidence[0] if confidence else None, probabilities[0] if probabilities else None)


def _steps(share: Floats) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.where(np.isnan(share), NO_SHARE, np.rint(share * SHARE_STEPS)).astype(np.uint8)


def _share(steps: np.ndarray[Any, np.dtype[np.uint8]]) -> Floats:
    return np.where(steps == NO_SHARE, np.float32(np.nan), steps / np.float32(SHARE_STEPS))
