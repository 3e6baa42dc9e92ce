"""Signals that wait for the end of a step, so that what is saved is a whole state."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
        _handle(former)
        if arrived and not whole:  # the block failed: there is no whole state, and who sent the signal still wants the end
            signal.raise_signal(arrived[0])
    if number := agreed(arrived[0] if arrived else 0):
        _handle(dict.fromkeys(former, signal.SIG_IGN))  # a second signal must not tear what the first one saves
        try:
            save()
        finally:
            _handle(former)
        signal.raise_signal(number)


def _handle(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
