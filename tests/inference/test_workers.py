"""Jobs on a pool that breaks: each is done, or given up by its own fault."""

from collections import Counter
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from threading import Timer
from time import sleep

import pytest

from rsdistill.errors import LockError, SceneError
from rsdistill.inference.workers import GivenPool, Job, Run


class Deaths:
    """A pool whose processes die of some jobs, and take with them whatever is under way at that moment."""

    final = (ZeroDivisionError,)

    def __init__(self, slots, deadly=(), renewable=True):
        self.slots, self.deadly, self.renewable = slots, Counter(deadly), renewable
        self.under_way, self.renewals, self.broken = [], 0, False

    def submit(self, job):
        if self.broken:
            raise BrokenExecutor
        if not self.under_way:
            Timer(0.02, self.work).start()
        future = Future()
        self.under_way.append((future, job))
        return future

    def work(self):
        """Do all that is under way, or die of it."""
        under_way, self.under_way = self.under_way, []
        killers = [job.name for _, job in under_way if self.deadly[job.name] > 0]
        self.deadly.subtract(killers[:1])
        self.broken = bool(killers)
        for future, job in under_way:
            if killers:
                future.set_exception(BrokenExecutor())
                continue
            try:
                future.set_result(job.call(job.argument))
            except Exception as error:
                future.set_exception(error)

    def renew(self):
        self.renewals += 1
        self.broken = not self.renewable
        return self.renewable


def jobs(count, call=str):
    return [Job(f"job {number}", call, number) for number in range(count)]


def ran(pool, work, retries=2):
    done, failed = [], {}

    def finished(job, _result):
        done.append(job.name)
        return ()

    run = Run(pool, retries, finished, lambda job, error: failed.setdefault(job.name, error))
    run.finish(work)
    assert run.deaths == pool.renewals or not pool.renewable
    return sorted(done), failed, run.retries


def test_a_death_costs_nobody_else_an_attempt():
    pool = Deaths(4, {"job 5": 1})
    done, failed, retries = ran(pool, jobs(16), retries=0)
    assert done == sorted(f"job {number}" for number in range(16))
    assert (failed, retries, pool.renewals) == ({}, 0, 1)


def test_a_job_that_always_kills_is_given_up_and_the_others_are_done():
    pool = Deaths(4, {"job 5": 99})
    done, failed, retries = ran(pool, jobs(16), retries=2)
    assert len(done) == 15
    assert set(failed) == {"job 5"}
    assert isinstance(failed["job 5"], BrokenExecutor)
    assert retries == 2
    assert pool.renewals == 5, "with three others, with one, and three times alone"


def test_a_pool_that_cannot_be_renewed_gives_up_what_is_left():
    done, failed, _ = ran(Deaths(4, {"job 5": 1}, renewable=False), jobs(16))
    assert len(done) == 4
    assert len(failed) == 12


@pytest.mark.parametrize(
    ("error", "attempts"), [(SceneError("torn"), 1), (ZeroDivisionError(), 1), (OSError("away"), 3), (LockError("held"), 3)]
)
def test_only_what_may_pass_is_tried_again(error, attempts):
    tried = []

    def call(number):
        tried.append(number)
        if number == 1:
            raise error

    done, failed, retries = ran(Deaths(2), jobs(4, call), retries=2)
    assert done == ["job 0", "job 2", "job 3"]
    assert failed == {"job 1": error}
    assert tried.count(1) == attempts
    assert retries == attempts - 1


def test_jobs_are_drawn_when_there_is_room_and_may_have_followers():
    drawn, pool = [], Deaths(3)

    def source():
        for job in jobs(50):
            drawn.append(job.name)
            assert len(drawn) <= len(done) + 3
            yield job

    done = []

    def finished(job, result):
        done.append(job.name)
        return [Job(f"after {job.name}", str, result)] if job.name == "job 7" else ()

    Run(pool, 0, finished, lambda *_: None).finish(source())
    assert len(done) == 51
    assert "after job 7" in done


def test_nothing_waits_any_longer_when_the_caller_is_interrupted():
    started = []

    def call(number):
        started.append(number)
        sleep(0.2)

    def interrupted(_job, _result):
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as threads:
        run = Run(GivenPool(threads, 6), 0, interrupted, lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            run.finish(jobs(6, call))
    assert len(started) < 6
