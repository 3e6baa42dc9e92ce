"""Signals that wait for the end of a step, so that what is saved is a whole state."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def postponed(save: Callable[[], None]) -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back while the block runs; if one came, call ``save`` and then let it act.

    Outside the main thread, where Python allows no handlers, signals act as they always do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    former = {number: signal.signal(number, remember) for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if arrived:
        save()
        signal.raise_signal(arrived[0])
