"""Batches read ahead by worker processes; one that dies or hangs is replaced once, and then named with the file it was reading."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from rsdistill.batches import Batch
from rsdistill.data.dataset import WHOLE, BatchSource, Share
from rsdistill.errors import MachineError
from rsdistill.reporting import SILENT, Progress

PATIENCE = 60.0
"""Seconds without the next batch after which a worker counts as dead."""
BURIAL = 2.0
"""Most seconds from the moment that a worker is killed to that in which the system says so."""
LONGEST = 512
"""Bytes of a file's name that a worker leaves behind."""


class Part(NamedTuple):
    """What is read at a time."""

    step: int
    share: Share = WHOLE


def parts_of(steps: range, shares: Sequence[Share] = (WHOLE,)) -> list[Part]:
    """Return the parts of ``steps`` in the order in which they are wanted."""
    return [Part(step, share) for step in steps for share in shares]


def loader(
    source: BatchSource, parts: Sequence[Part], workers: int, *, pin_memory: bool = False, progress: Progress = SILENT
) -> Iterator[Batch]:
    """Yield the batches of ``parts``, in order; ``workers`` processes read ahead, 0 reads in this one.

    What a part holds does not depend on who reads it, so that a worker may be replaced in the middle of a run.

    Raises:
        MachineError: a worker died, or was silent for :data:`PATIENCE` seconds, at the same place twice.
        RsdistillError: a file cannot be read, tried twice where there are workers.
    """
    done, failed = 0, -1
    while done < len(parts):
        watch = _Watch(workers)
        fault: Exception | None = None
        try:
            for batch in _once(source, parts[done:], watch, workers, pin_memory):
                if isinstance(batch, Exception):
                    fault = batch
                    break
                yield batch
                done += 1
        except (RuntimeError, OSError, EOFError) as error:  # the last two: a batch on its way here, whose memory died with its worker
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader"):
                raise
            fault = MachineError(
                watch.report(silent="timed out" in str(error)), hint="check that file and the memory of the machine, or use --workers 0"
            )
        if fault is not None and (failed == done or not workers):
            raise fault
        if fault is not None:
            progress.warn(f"{fault}; reading goes on with new workers")
            failed = done


def _once(source: BatchSource, parts: Sequence[Part], watch: "_Watch", workers: int, pin_memory: bool) -> Iterator[Batch | Exception]:
    """Yield batches until the first fault, which is yielded too, or raised by the DataLoader where a worker died."""
    made: DataLoader[Batch | Exception] = DataLoader(
        _Parts(source, parts, watch),
        batch_size=None,
        sampler=range(len(parts)),
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=PATIENCE if workers else 0,
    )
    with _deaf_to_children():
        batches = iter(made)
    yield from batches


@contextmanager
def _deaf_to_children() -> Iterator[None]:
    """Keep torch from raising in the middle of a training step when a worker dies; it is noticed where its batch is waited for."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    former = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, former)


class _Parts(Dataset["Batch | Exception"]):
    """The parts by their number. An error is an answer too: raised in a worker, it would lose its hint and its exit code."""

    def __init__(self, source: BatchSource, parts: Sequence[Part], watch: "_Watch") -> None:
        self.source, self.parts, self.watch = source, parts, watch

    def __getitem__(self, number: int) -> Batch | Exception:
        self.source.reader.reading = self.watch.note
        try:
            return self.source.part(*self.parts[number])
        except Exception as error:
            return error
        finally:
            self.watch.note("")


class _Watch:
    """The file that each worker is reading, in memory that outlives it."""

    def __init__(self, workers: int) -> None:
        self.names = _shared(torch.zeros(workers, LONGEST, dtype=torch.uint8))
        self.processes = _shared(torch.zeros(workers, dtype=torch.int64))

    def note(self, file: str) -> None:
        """Note that this process starts to read ``file``; '' is none. Outside workers there is nothing to note."""
        worker = get_worker_info()
        if worker is not None:
            name = os.fsencode(file)[-LONGEST:].ljust(LONGEST, b"\0")
            self.names[worker.id] = torch.frombuffer(bytearray(name), dtype=torch.uint8)
            self.processes[worker.id] = os.getpid()

    def report(self, *, silent: bool) -> str:
        """Say that a worker is gone, or that all are ``silent``, and what they were reading."""
        dead = self._dead()
        until = time.monotonic() + BURIAL
        while not silent and not dead and time.monotonic() < until:  # its files are closed before it counts as ended
            time.sleep(0.01)
            dead = self._dead()
        names = [os.fsdecode(bytes(self.names[row].tolist()).strip(b"\0")) for row in dead or range(len(self.names))]
        files = ", ".join(dict.fromkeys(filter(None, names)))
        what = f"the reading processes were silent for {PATIENCE:.0f} seconds" if silent else "a reading process died"
        return f"{what} while reading {files}" if files else f"{what} between two files"

    def _dead(self) -> list[int]:
        alive = {process.pid for process in multiprocessing.active_children()}
        return [row for row, process in enumerate(self.processes.tolist()) if process and process not in alive]


def _shared(tensor: Tensor) -> Tensor:
    return tensor.share_memory_()  # type: ignore[no-untyped-call]
