"""A thread that works one step behind: encoding and writing go on while the next rows are made, and never by more than one step."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Behind:
    """Runs one call at a time in a thread of its own; what a call raised is raised by the next call, or by :meth:`wait`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[Any] | None = None

    def __call__(self, work: Callable[..., object], *arguments: Any) -> None:
        """Wait for the last call, then start this one."""
        self.wait()
        self._last = self._thread.submit(work, *arguments)

    def wait(self) -> None:
        """Return when nothing is running any more."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Let the last call finish, whatever comes of it, and end the thread."""
        self._thread.shutdown()
        self._last = None
