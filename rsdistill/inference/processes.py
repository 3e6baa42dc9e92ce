"""Worker processes on this machine: started clean, one accelerator each where there are several, gone with the process that made them."""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, Self

from rsdistill.inference.workers import Job

_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class ProcessPool:
    """A pool of processes that can be made anew after one of them died; a context manager.

    They are not forked from this process: threads, open files and accelerators do not survive that. On Linux they come from one that has
    loaded the libraries and done nothing else, so that loading is done once and its memory shared; elsewhere they start afresh.
    """

    final: tuple[type[BaseException], ...] = ()

    def __init__(self, workers: int, devices: Sequence[str] = ()) -> None:
        """Prepare ``workers`` processes.

        Args:
            workers: how many.
            devices: names of accelerators as in ``CUDA_VISIBLE_DEVICES``; workers get one each, in turn. None: all see all.
        """
        self._workers, self._devices = workers, tuple(devices)
        self.slots = 2 * workers  # one that runs and one that waits, so that no worker waits for this process

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._lifeline.close()
        self._executor.shutdown(cancel_futures=True)
        self._lifeline.close()

    def submit(self, job: Job) -> "Future[Any]":
        """Start a job."""
        return self._executor.submit(job.call, job.argument)

    def renew(self) -> bool:
        """Replace all processes."""
        self._lifeline.close()
        self._executor.shutdown()
        self._start()
        return True

    def _start(self) -> None:
        context = multiprocessing.get_context(_METHOD)
        ended, self._lifeline = context.Pipe(duplex=False)
        number = context.Value("i", 0)
        given = (ended, number, self._devices)
        self._executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_begin, initargs=given)


def load_ahead(modules: Sequence[str]) -> None:
    """Begin to load ``modules`` for the workers of all pools to come, while this process goes on; those that are missing are left out."""
    if _METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["rsdistill.inference.serving_ahead", *modules])
        resource_tracker.ensure_running()  # which the server would start, and that unblocks SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # which who loads has from here: Ctrl-C is for this process
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(ended: Connection, number: Any, devices: Sequence[str]) -> None:
    """Prepare a worker: Ctrl-C is for its parent, whose end, told by the pipe's, is its own; what is loaded is no longer searched."""
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(ended,), daemon=True).start()
    with number.get_lock():
        mine = number.value
        number.value += 1
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[mine % len(devices)]


def _end_with(ended: Connection) -> None:
    ended.poll(None)
    os._exit(1)


def accelerators(device: str) -> tuple[str, ...]:
    """Return the names of this machine's accelerators where ``device`` leaves the choice among several; none otherwise."""
    if device not in ("auto", "cuda"):
        return ()
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return tuple(visible.split(",")) if count > 1 else ()
