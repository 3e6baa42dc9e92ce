"""What can be refused before torch is imported: the output that exists, the tile set that is unfit."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rsdistill.errors import ConfigError, RsdistillError, TileSetError
from rsdistill.geo.files import refuse_existing
from rsdistill.geo.locking import locked
from rsdistill.geo.tile_index import TileSet, load_tile_set
from rsdistill.training.settings import LaunchConfig, TrainingConfig

SUFFIX = ".safetensors"
RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")
"""Where a process finds its number among those of its run; the first one is 0 in all that are set."""


@dataclass(frozen=True)
class Files:
    """The names of what a run leaves."""

    model: Path

    @property
    def last(self) -> Path:
        """The model after the last step; ``model`` is the one that validated best."""
        return self.model.with_name(f"{self.model.stem}.last.safetensors")

    @property
    def log(self) -> Path:
        """One row a logged step."""
        return self.model.with_name(f"{self.model.stem}.log.csv")

    @property
    def curves(self) -> Path:
        """The log as a picture."""
        return self.model.with_name(f"{self.model.stem}.curves.png")

    @property
    def run(self) -> Path:
        """The configuration that repeats the run."""
        return self.model.with_name(f"{self.model.stem}.run.toml")

    @property
    def state(self) -> Path:
        """What an interrupted run goes on from; gone when it has finished."""
        return self.model.with_name(f"{self.model.stem}.state.pt")


def ready(config: LaunchConfig, name: str) -> Files:
    """Return the names of the files that the run may write, after a look at what it would stumble over.

    Raises:
        ConfigError: the model's name does not end in ``.safetensors``.
        OutputExistsError: the model exists, ``overwrite`` is not set, and no unfinished run is resumed.
        TileSetError: the tile set is missing, broken or unfit for training.
    """
    files = Files(config.out or config.work / name)
    try:
        if files.model.suffix != SUFFIX:
            raise ConfigError(f"--out {files.model} does not end in {SUFFIX}", hint="the result is one model file, such as work/" + name)
        _refuse_existing(files, config)
        open_tile_set(config)
    except RsdistillError as error:
        if leads(config):
            raise
        sys.exit(error.exit_code)
    if several(config):  # DDP looks for parts without a gradient, and would warn where it finds none
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return files


def several(config: LaunchConfig) -> bool:
    """Return whether the run has more processes than this one."""
    return config.devices * config.nodes > 1 or "TORCHELASTIC_RUN_ID" in os.environ


def leads(config: LaunchConfig) -> bool:
    """Return whether this process is the first of its run, by the environment that Fabric, torchrun or srun gave it."""
    return not several(config) or all(os.environ.get(name, "0") == "0" for name in RANKS)


def _refuse_existing(files: Files, config: TrainingConfig) -> None:
    unfinished = config.resume and files.state.exists()  # then a model is what the run left that is to be resumed
    refuse_existing([files.model], config.overwrite or unfinished)


@contextmanager
def held(files: Files, config: LaunchConfig) -> Iterator[None]:
    """Hold the model's name against other runs; the processes of one run have it together.

    Raises:
        LockError: another run writes it.
        OutputExistsError: another run has finished it meanwhile.
    """
    with locked(files.model) if leads(config) else nullcontext():
        if leads(config):
            _refuse_existing(files, config)
        yield


def open_tile_set(config: TrainingConfig) -> TileSet:
    """Return the tile set of ``config``.

    Raises:
        TileSetError: missing, broken, or without a labelled training tile or a validation tile.
    """
    tile_set = load_tile_set(config.tile_folder)
    if not sum(tile_set.card.class_pixels["train"]):
        raise TileSetError(f"{tile_set.folder} has no labelled training pixel", hint="label more scenes, or move fewer to validation")
    if not sum(tile_set.card.class_pixels["val"]):
        raise TileSetError(f"{tile_set.folder} has no labelled validation pixel", hint="tile again with --val 0.2 or --val-scenes")
    return tile_set
