"""The state of an unfinished run on disk: read back by type-checked unpickling only, and only for the run that wrote it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from rsdistill.errors import DiskError
from rsdistill.geo.files import atomic
from rsdistill.reporting import Progress
from rsdistill.training.settings import TrainingConfig

FREE = {"resume", "overwrite", "device", "workers", "threads", "work", "out", "tensorboard", "offline", "devices", "nodes", "strategy"}
"""Options that may change between an interruption and its resumption."""


def fingerprint(config: TrainingConfig, *parts: str) -> str:
    """Return a digest of all that decides a run's result: its options, and ``parts`` such as the tile set's and teachers' digests."""
    options = config.model_dump(mode="json", exclude=FREE)
    return hashlib.sha256(json.dumps([options, *parts], sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_state(path: Path, state: dict[str, Any], mark: str) -> None:
    """Write ``state`` whole or not at all; what an earlier save left stays until then.

    Raises:
        DiskError: it cannot be written.
    """
    with atomic(path) as part:
        try:
            torch.save({"fingerprint": mark, **state}, part)
        except RuntimeError as error:  # so torch says that a disk is full
            raise DiskError(f"cannot write {path}", hint="free some space; --resume then goes on from the last state") from error


def load_state(path: Path, mark: str, progress: Progress) -> dict[str, Any] | None:
    """Return the state at ``path`` if the run marked ``mark`` wrote it; otherwise say why not and return None."""
    if not path.exists():
        progress.message(f"nothing to resume at {path}: starting from the first step")
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what torn bytes make the unpickler raise is anything
        progress.warn(f"{path} is damaged: starting from the first step")
        return None
    if state.get("fingerprint") != mark:
        progress.warn(f"{path} belongs to a run with other options or data: starting from the first step")
        return None
    return state
