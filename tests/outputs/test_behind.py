"""A thread one step behind: what it does is done when its block is left, at whatever moment that was interrupted."""

import threading

import pytest

from rsdistill.outputs.behind import Behind


class Work:
    """A call that takes a while, as writing does."""

    def __init__(self):
        self.going_on, self.done = threading.Event(), 0

    def __call__(self):
        self.going_on.set()
        threading.Event().wait(0.2)
        self.done += 1
        self.going_on.clear()


def test_one_call_at_a_time_and_its_error_comes_with_the_next():
    work = Work()

    def fail():
        raise OSError("no space")

    with Behind() as behind:
        behind(work)
        behind(fail)
        assert work.done == 1
        with pytest.raises(OSError, match="no space"):
            behind(work)
        behind(work)
        behind.wait()
        assert work.done == 2


def test_the_last_call_is_finished_when_the_block_is_left():
    def interrupted():
        with Behind() as behind:
            behind(work)
            raise KeyboardInterrupt

    work = Work()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert work.done == 1


def test_nothing_goes_on_after_an_interruption_while_the_thread_starts(monkeypatch):
    """The signal arrives where the main thread waits for a thread of which nobody knows yet."""
    start, work, before = threading.Thread.start, Work(), threading.active_count()

    def interrupted(self):
        start(self)
        work.going_on.wait(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind(work)
    assert not work.going_on.is_set()
    for thread in threading.enumerate()[before:]:
        thread.join(5)
    assert threading.active_count() == before
