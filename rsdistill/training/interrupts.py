"""Signals that wait for the end of a step, so that what is saved is a whole state."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def postponed(save: Callable[[], None], agreed: Callable[[int], int] = int) -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while the block runs; if one came, call ``save`` and then let it act.

    Outside the main thread, where Python allows no handlers, signals act as they always do.

    Args:
        save: called before the signal acts.
        agreed: called after the block with the signal, 0 for none; returns the one that shall act, since another process may have got it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        agreed(0)
        return
    arrived: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    whole = False
    former = {number: signal.signal(number, remember) for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
        whole = True
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if arrived and not whole:  # the block failed: there is no whole state, and who sent the signal still wants the end
            signal.raise_signal(arrived[0])
    if number := agreed(arrived[0] if arrived else 0):
        save()
        signal.raise_signal(number)
