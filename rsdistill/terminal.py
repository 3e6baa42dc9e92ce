"""What a person sees on stderr while a command runs and when it has finished; the only place that knows rich."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, TextIO

from rsdistill.reporting import SILENT, Progress, Table, Task

QUICK_SECONDS = 2.0
"""A task that takes less leaves no lines in a log file."""


def draw_traceback() -> None:
    """Print the exception that is being handled."""
    from rich.console import Console

    Console(stderr=True).print_exception()


def draw(table: Table, stream: TextIO) -> None:
    """Print ``table`` on ``stream``: with rules on a terminal, as aligned text elsewhere."""
    if not stream.isatty():
        stream.write("\n".join(aligned(table)) + "\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable

    drawn = RichTable(box=SIMPLE_HEAD, show_header=any(table.columns))
    for position, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console = Console(file=stream)
    console.print(table.title, style="bold", markup=False, highlight=False)
    console.print(drawn)


def aligned(table: Table) -> Iterator[str]:
    """Yield the title and the rows of ``table``, the first column to the left and all others to the right."""
    yield table.title
    rows = [table.columns, *table.rows] if any(table.columns) else table.rows
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells]).rstrip()


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """Yield the progress that suits where stderr goes: bars on a terminal, plain lines in a file, nothing when quiet."""
    if quiet:
        yield SILENT
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        with RichProgress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=Console(stderr=True)) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Bars:
    """Progress on a terminal."""

    def __init__(self, bars: Any) -> None:
        self.bars = bars

    def message(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        self.bars.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False)

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        number = self.bars.add_task(name, total=total, figures="")
        yield _Bar(self.bars, number)
        self.bars.remove_task(number)


class _Bar:
    def __init__(self, bars: Any, number: Any) -> None:
        self.bars, self.number = bars, number

    def advance(self, amount: float = 1, **figures: float | str) -> None:
        shown = "  ".join(f"{name} {_figure(value)}" for name, value in figures.items())
        self.bars.update(self.number, advance=amount, **({"figures": shown} if figures else {}))


class _Lines:
    """Progress in a log file: one line a message, and one at each tenth of a task."""

    def message(self, text: str) -> None:
        _write(text)

    def warn(self, text: str) -> None:
        _write(f"warning: {text}")

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        yield _Line(name, total)


class _Line:
    def __init__(self, name: str, total: float | None) -> None:
        self.name, self.total, self.done, self.told = name, total, 0.0, 0
        self.start = monotonic()

    def advance(self, amount: float = 1, **figures: float | str) -> None:
        self.done += amount
        tenth = int(10 * self.done / self.total) if self.total else 0
        if tenth > self.told and monotonic() - self.start > QUICK_SECONDS:
            self.told = tenth
            shown = "  ".join(f"{name} {_figure(value)}" for name, value in figures.items())
            _write(f"{self.name} {self.done:.0f}/{self.total:.0f}  {shown}".rstrip())


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _write(line: str) -> None:
    with suppress(OSError):  # a log that cannot be written to any more is no reason to lose the run
        print(line, file=sys.stderr, flush=True)  # noqa: T201
