"""How commands speak without knowing a terminal: progress while they run, a result when they end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Task(Protocol):
    """One bar of progress."""

    def advance(self, amount: float = 1, **figures: float | str) -> None:
        """Move on by ``amount`` and show the named figures beside the bar."""


class Progress(Protocol):
    """What a command may say while it runs; the command line draws it, a library call drops it."""

    def message(self, text: str) -> None:
        """Say one line."""

    def warn(self, text: str) -> None:
        """Say one line that should not be missed."""

    def task(self, name: str, total: float | None = None) -> Any:
        """Return a context manager that yields a :class:`Task` of ``total`` steps."""


class _SilentTask:
    def advance(self, amount: float = 1, **figures: float | str) -> None:
        pass


class Silent:
    """Progress that says nothing: the default of library calls."""

    def message(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        """Yield a task that shows nothing."""
        yield _SilentTask()


SILENT = Silent()


@dataclass(frozen=True)
class Table:
    """A small table for a person: rows of cells, already as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """What a command made: paths for stdout, data for ``--json``, tables for the screen, failures for exit 6."""

    paths: tuple[Path, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    failures: tuple[str, ...] = ()
    kept: int = 0
    """Parts that were finished of what failed, for a later run to go on from."""
    told: bool = False
    """Whether the tables are what was asked for, so that they belong on stdout."""
