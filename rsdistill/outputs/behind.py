"""Threads beside the main one: work goes on there while the next is made, and never after the block that it belongs to."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self


@contextmanager
def one_thread() -> Iterator[ThreadPoolExecutor]:
    """Yield a thread to submit work to, and wait for all of it at the end of the block, at whatever moment an interruption came.

    The thread has started before the block begins: a pool does not know, and does not wait for, one that it was interrupted in starting,
    and that one would go on writing to a file that is closed.
    """
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(int).result()
        yield pool
    finally:
        pool.shutdown()


class Behind:
    """Runs one call at a time in a thread of its own; what a call raised is raised by the next call, or by :meth:`wait`.

    A context manager: in the end the last call finishes, whatever comes of it.
    """

    def __enter__(self) -> Self:
        self._last: Future[Any] | None = None
        self._held = ExitStack()
        self._thread = self._held.enter_context(one_thread())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()
        self._last = None

    def __call__(self, work: Callable[..., object], *arguments: Any) -> None:
        """Wait for the last call, then start this one."""
        self.wait()
        self._last = self._thread.submit(work, *arguments)

    def wait(self) -> None:
        """Return when nothing is running any more."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
