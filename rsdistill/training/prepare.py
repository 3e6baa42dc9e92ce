"""What can be refused before torch is imported: the output that exists, the tile set that is unfit."""

from dataclasses import dataclass
from pathlib import Path

from rsdistill.errors import TileSetError
from rsdistill.geo.files import refuse_existing
from rsdistill.geo.tile_index import TileSet, load_tile_set
from rsdistill.training.settings import TrainingConfig


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


def ready(config: TrainingConfig, name: str) -> Files:
    """Return the names of the files that the run may write, after a look at what it would stumble over.

    Raises:
        OutputExistsError: the model exists and ``overwrite`` is not set.
        TileSetError: the tile set is missing, broken or unfit for training.
    """
    files = Files(config.out or config.work / name)
    refuse_existing([files.model], config.overwrite)
    open_tile_set(config)
    return files


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
