"""Many tasks on any executor: tried again where they fail, without one that always fails taking others with it."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, Protocol

from rsdistill.errors import ConfigError, InputError
from rsdistill.reporting import SILENT, Task


class Work(Protocol):
    """A part of something larger; it pickles."""

    @property
    def chunks(self) -> int:
        """How much progress it is."""


class Job(NamedTuple):
    """A call that another process can make: function and argument pickle."""

    name: str
    call: Callable[[Any], Any]
    argument: Any


class Pool(Protocol):
    """Where jobs are run."""

    @property
    def slots(self) -> int:
        """Jobs that are best handed over at a time: some that run, and some that wait beside the workers."""

    @property
    def final(self) -> tuple[type[BaseException], ...]:
        """Errors of a job that the pool itself has already tried again."""

    def submit(self, job: Job) -> "Future[Any]":
        """Start a job."""

    def renew(self) -> bool:
        """Replace an executor that broke when one of its processes died; False where that cannot be done."""


class GivenPool:
    """An executor that the caller made and will close."""

    final: tuple[type[BaseException], ...] = ()

    def __init__(self, executor: Executor, slots: int) -> None:
        """Use ``executor`` for up to ``slots`` jobs at a time."""
        self._executor, self.slots = executor, slots

    def submit(self, job: Job) -> "Future[Any]":
        """As the protocol."""
        return self._executor.submit(job.call, job.argument)

    def renew(self) -> bool:
        """As the protocol."""
        return False


def refuse_forks(executor: Executor) -> None:
    """Refuse an executor whose processes are forked from this one: the threads that torch and GDAL have here do not live on there.

    Raises:
        ConfigError: it is a pool of such processes, which would wait for them for ever.
    """
    context = getattr(executor, "_mp_context", None)
    if isinstance(executor, ProcessPoolExecutor) and context is not None and context.get_start_method() == "fork":
        hint = "ProcessPoolExecutor(n, mp_context=multiprocessing.get_context('spawn'))"
        raise ConfigError(f"{type(executor).__name__} has processes forked from this one, which torch does not survive", hint=hint)


class Run:
    """Jobs on their way through a pool.

    A job that raises is tried again after all others, ``retries`` times; bad input is not, it stays bad. When a process dies, the executor
    breaks and does not say whose fault it was: the jobs that were under way are tried again after all others, one half of them and then
    the other, and the halves of a half that dies again, until a job that dies is alone.
    """

    def __init__(self, pool: Pool, retries: int, done: Callable[[Job, Any], Iterable[Job]], failed: Callable[[Job, BaseException], None]):
        """Prepare to run jobs.

        Args:
            pool: where they run.
            retries: further attempts that a job gets.
            done: called with each job and its result; returns the jobs that are to follow.
            failed: called with each job that is given up, and its last error.
        """
        self._pool, self._retries, self._done, self._failed = pool, retries, done, failed
        self._waiting: deque[Job] = deque()
        self._suspects: deque[list[Job]] = deque()
        self._running: dict[Future[Any], Job] = {}
        self._attempts: Counter[str] = Counter()
        self.retries = 0
        """Attempts after the first, so far."""
        self.deaths = 0
        """How often processes died and were replaced, so far."""

    def finish(self, jobs: Iterable[Job]) -> None:
        """Run all ``jobs``, drawn when there is room for them, and those that follow."""
        source = iter(jobs)
        with ExitStack() as stack:
            stack.callback(self._cancel)
            while self._fill(source):
                wait(self._running, return_when=FIRST_COMPLETED)
                self._collect()

    def _fill(self, source: Iterator[Job]) -> bool:
        """Hand over as many jobs as there is room for, and when there are no others, some suspects; False when there is nothing left."""
        while len(self._running) < self._pool.slots and (job := self._waiting.popleft() if self._waiting else next(source, None)):
            self._submit(job)
        if not self._running and self._suspects:
            for job in self._suspects.popleft():
                self._submit(job)
        return bool(self._running)

    def _submit(self, job: Job) -> None:
        try:
            self._running[self._pool.submit(job)] = job
        except BrokenExecutor as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            self._running[broken] = job

    def _collect(self) -> None:
        finished = [future for future in self._running if future.done()]
        if any(isinstance(_error(future), BrokenExecutor) for future in finished):
            wait(self._running)
            finished = list(self._running)
        under_way: list[tuple[Job, BaseException]] = []
        for future in finished:
            job, error = self._running.pop(future), _error(future)
            if error is None:
                self._waiting.extend(self._done(job, future.result()))
            elif isinstance(error, BrokenExecutor):
                under_way.append((job, error))
            elif self._may_try(job, error):
                self._waiting.append(job)
        if under_way:
            self._after_death(under_way)

    def _after_death(self, under_way: list[tuple[Job, BaseException]]) -> None:
        jobs = [job for job, _ in under_way]
        if not self._pool.renew():
            for job, error in under_way:
                self._failed(job, error)
            return
        self.deaths += 1
        if len(jobs) > 1:
            self._suspects.extend((jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]))
        elif self._may_try(*under_way[0]):
            self._suspects.append(jobs)

    def _may_try(self, job: Job, error: BaseException) -> bool:
        """Count an attempt; give a job up that has had all of them."""
        if isinstance(error, (InputError, *self._pool.final)) or self._attempts[job.name] >= self._retries:
            self._failed(job, error)
            return False
        self._attempts[job.name] += 1
        self.retries += 1
        return True

    def _cancel(self) -> None:
        for future in self._running:
            future.cancel()


def on_workers(pool: Pool, retries: int) -> Callable[..., Iterator[Any]]:
    """Return what has a call make something of each work, in ``pool``, and yields that in the order of the works.

    A work has ``chunks``: how much its task moves on when it is done. The error of the first work that is given up is raised.
    """

    def each(call: Callable[[Work, Task], Any], works: Sequence[Work], task: Task) -> Iterator[Any]:
        made: dict[int, Any] = {}

        def done(job: Job, result: Any) -> Iterable[Job]:
            number, work = job.argument
            made[number] = result
            task.advance(work.chunks)
            return ()

        def failed(_: Job, error: BaseException) -> None:
            raise error

        jobs = (Job(f"part {number}", partial(_silently, call), (number, work)) for number, work in enumerate(works))
        Run(pool, retries, done, failed).finish(jobs)
        return (made[number] for number in range(len(works)))

    return each


def _silently(call: Callable[[Work, Task], Any], numbered: tuple[int, Work]) -> Any:
    with SILENT.task("") as task:
        return call(numbered[1], task)


def _error(future: "Future[Any]") -> BaseException | None:
    try:
        return future.exception()
    except CancelledError as error:
        return error
