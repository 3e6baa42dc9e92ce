"""Signals wait for the end of a step."""

import os
import signal
import threading

import pytest

from rsdistill.training.interrupts import postponed


def test_a_signal_inside_a_step_acts_after_the_step_and_after_the_save():
    happened = []

    def step():
        with postponed(lambda: happened.append("saved")):
            os.kill(os.getpid(), signal.SIGINT)
            happened.append("step ended")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert happened == ["step ended", "saved"]


def test_a_second_signal_does_not_tear_what_the_first_one_saves():
    happened = []

    def save():
        os.kill(os.getpid(), signal.SIGINT)
        happened.append("saved")

    def step():
        with postponed(save):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        step()
    assert happened == ["saved"]


def test_without_a_signal_nothing_is_saved_and_the_handlers_are_back():
    former = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with postponed(lambda: pytest.fail("saved without need")):
        assert signal.getsignal(signal.SIGINT) is not former[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == former


def test_handlers_are_back_after_a_fault():
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), postponed(lambda: None):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is former


def test_a_signal_in_a_step_that_fails_is_not_lost():
    def step():
        with postponed(lambda: pytest.fail("a state that is not whole was saved")):
            os.kill(os.getpid(), signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        step()


def test_in_another_thread_it_does_nothing():
    seen = []

    def work():
        with postponed(lambda: None):
            seen.append(threading.current_thread().name)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    assert seen == ["worker"]
