"""Dask as the engine: workers on any number of machines, joined and left while a run goes on; the only place that knows it."""

import json
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from rsdistill.errors import ConfigError, MachineError, MissingExtraError
from rsdistill.inference.workers import Job

CONNECT_SECONDS = 30


class DaskPool:
    """A Dask cluster that runs jobs; a context manager. Work of a worker that dies goes to another one, which Dask sees to."""

    def __init__(self, *, scheduler: str | None, scheduler_file: Path | None, workers: int) -> None:
        """Name the cluster.

        Args:
            scheduler: address of a scheduler, ``tcp://host:8786``.
            scheduler_file: JSON file that a scheduler wrote.
            workers: processes of the cluster that is started on this machine where neither is given.

        Raises:
            ConfigError: both are given, or the file is none of a scheduler.
            MissingExtraError: Dask is not installed.
        """
        if scheduler and scheduler_file:
            raise ConfigError("--scheduler and --scheduler-file exclude each other", hint="both name the one scheduler")
        if scheduler_file:
            _refuse_foreign(scheduler_file)
        try:
            from distributed.scheduler import KilledWorker
        except ImportError:
            raise MissingExtraError("--engine dask needs Dask", hint="pip install 'rsdistill[dask]'") from None
        self.final: tuple[type[BaseException], ...] = (KilledWorker,)
        self._scheduler, self._scheduler_file, self._workers = scheduler, scheduler_file, workers
        self._open = ExitStack()

    def __enter__(self) -> Self:
        from distributed import Client, LocalCluster

        try:
            with ExitStack() as stack:
                where: dict[str, Any] = {"address": self._scheduler}
                if self._scheduler_file:
                    where = {"scheduler_file": str(self._scheduler_file)}
                elif not self._scheduler:
                    own = LocalCluster(n_workers=self._workers, threads_per_worker=1, dashboard_address=None)
                    where = {"address": stack.enter_context(own)}
                self._client = stack.enter_context(Client(**where, timeout=CONNECT_SECONDS))
                self._executor = stack.enter_context(self._client.get_executor(pure=False))
                self._open = stack.pop_all()
        except (OSError, ValueError) as error:
            named = self._scheduler or self._scheduler_file
            raise MachineError(f"no Dask scheduler at {named}: {error}", hint="is it running, and is this its address?") from error
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @property
    def slots(self) -> int:
        """Twice the threads that the cluster has at this moment."""
        return max(2, 2 * sum(self._client.nthreads().values()))

    def submit(self, job: Job) -> "Future[Any]":
        """Start a job."""
        future: Future[Any] = self._executor.submit(job.call, job.argument)
        return future

    def renew(self) -> bool:
        """Nothing to renew: Dask replaces workers by itself."""
        return False


def _refuse_foreign(scheduler_file: Path) -> None:
    """Refuse a file that names no scheduler: Dask would wait for one that is missing without an end."""
    try:
        content = json.loads(scheduler_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {scheduler_file}: {error}", hint="dask scheduler --scheduler-file writes it") from None
    if not (isinstance(content, dict) and isinstance(content.get("address"), str)):
        raise ConfigError(f"{scheduler_file} names no scheduler", hint="dask scheduler --scheduler-file writes it")
