"""The log of a run: a CSV that is always whole, and TensorBoard events where they are wanted."""

import csv
from pathlib import Path
from typing import Any

from rsdistill.errors import MissingExtraError
from rsdistill.geo.files import atomic


class RunLog:
    """Rows of named figures, one a logged step; columns come and go with the terms."""

    def __init__(self, path: Path, every: int, *, tensorboard: bool = False) -> None:
        self.path, self.every = path, every
        self.rows: list[dict[str, float]] = []
        self._events = _events(path.parent / f"{path.name.removesuffix('.log.csv')}.events") if tensorboard else None

    def write(self, row: dict[str, float]) -> None:
        """Add a row and write the file."""
        self.rows.append(row)
        columns = list(dict.fromkeys(name for each in self.rows for name in each))
        with atomic(self.path) as part, part.open("w", newline="") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows({name: f"{value:.6g}" for name, value in each.items()} for each in self.rows)
        if self._events is not None:
            self._events.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def restore(self, rows: list[dict[str, float]]) -> None:
        """Go back to the rows of a saved state."""
        self.rows = list(rows)


def _events(folder: Path) -> Any:
    try:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(folder.parent, name=folder.name, version="")
    except ModuleNotFoundError:
        raise MissingExtraError("--tensorboard needs the package tensorboard", hint="pip install 'rsdistill[tensorboard]'") from None
