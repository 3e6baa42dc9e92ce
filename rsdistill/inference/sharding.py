"""One scene as shards: the task that any machine can run by itself, and the file that it leaves."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from glob import escape
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import SceneError
from rsdistill.geo.caching import bounded_cache, cache_for
from rsdistill.geo.interest import Interest
from rsdistill.geo.occupancy import Occupancy
from rsdistill.geo.scenes import Scene
from rsdistill.geo.sources import is_remote
from rsdistill.geo.windows import Window, plan
from rsdistill.inference.blending import Strip, Wanted
from rsdistill.inference.cutting import cut
from rsdistill.inference.engine import Stats
from rsdistill.inference.journal import Journal
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.products import count_classes
from rsdistill.inference.scores import Floats
from rsdistill.inference.settings import MapConfig
from rsdistill.outputs.shards import EMPTY_SUFFIX, ShardCard, ShardWriter, grid_card, read_card, write_empty

_CANVAS = re.compile(r"\.[0-9a-f]{12}\.canvas")


@dataclass(frozen=True)
class Shard:
    """One rectangle of a map, to be made by whoever gets it: paths and plain values."""

    path: Path
    """The file to make."""
    options: MapConfig
    """How scenes are mapped."""
    model: Path
    digest: str
    """Of the model file."""
    pixel_size: float | None
    card: ShardCard
    canvases: Path | None = None
    """Folder where the scene's context is kept once for all shards."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.card.scene}, shard {self.card.index} of {self.card.count} ({self.path})"


@dataclass(frozen=True)
class Layout:
    """The rectangles of one map and what all of its shards have in common."""

    windows: tuple[Window | None, ...]
    card: dict[str, Any] = field(repr=False)
    """The keys of a shard's card but for its index and window."""


def lay_out(mapper: Mapper, scene: Scene, wanted: Wanted, count: int, look: Mapping[str, Any]) -> Layout:
    """Cut what is to be mapped of ``scene`` into ``count`` rectangles of about the same work.

    Args:
        mapper: the model and its options.
        scene: from :meth:`Mapper.open`.
        wanted: what is asked for beside labels.
        count: of rectangles; where there are fewer windows, some stay empty.
        look: how the map is to be written; kept in the cards.

    Raises:
        ConfigError: an option does not fit the model or the scene.
    """
    config, interest, frame = mapper.config, mapper.interest(scene), mapper.frame(scene)
    windows, batch = mapper.model.windows(config.tile, config.margin), mapper.batch
    grid = plan(scene.grid.height, scene.grid.width, windows.tile, windows.margin, mapper.model.stride)
    rectangles = cut(
        grid,
        mapper.area(scene, interest),
        config.blend,
        batch=batch,
        count=count,
        holds_data=partial(holds_data, Occupancy(scene), interest),
    )
    layout = {"tile": windows.tile, "margin": windows.margin, "batch": batch, "rectangles": _digest(rectangles)}
    card = {
        "count": count,
        "frame": tuple(frame),
        **grid_card(scene.grid[frame]),
        "classes": tuple(mapper.table.to_card()),
        "ignore": tuple(mapper.table.ignore),
        "confidence": wanted.confidence,
        "probabilities": wanted.probabilities,
        "scene": str(scene.path),
        "pictured": frame == scene.grid.window and mapper.pixel_size is None,
        "mark": _plain({**mapper.mark(scene, wanted), "layout": layout}),
        "look": _plain(dict(look)),
    }
    return Layout(tuple(rectangles), card)


def holds_data(occupancy: Occupancy, interest: Interest | None, rows: Sequence[int], cols: Sequence[int]) -> NDArray[np.bool_]:
    """Return (R, C) whether each cell between R + 1 and C + 1 borders seems to hold data of interest."""
    found = occupancy(rows, cols)
    if interest is not None:
        for row, col in np.argwhere(found):
            found[row, col] = interest.meets(Window(rows[row], cols[col], rows[row + 1] - rows[row], cols[col + 1] - cols[col]))
    return found


def shard_of(layout: Layout, mapper: Mapper, index: int, path: Path, canvases: Path | None = None) -> Shard:
    """Return the task of making shard ``index`` (from 1) in the file ``path``; an empty one gets a marker in its place."""
    window = layout.windows[index - 1]
    card = ShardCard(index=index, window=window, **layout.card)
    path = path if window is not None else path.with_suffix(EMPTY_SUFFIX)
    options = MapConfig(**{name: getattr(mapper.config, name) for name in MapConfig.model_fields})
    if options.aoi:
        options = options.model_copy(update={"aoi": options.aoi.absolute()})
    shared = canvases if mapper.model.needs_context else None
    return Shard(path.absolute(), options, mapper.path.absolute(), mapper.digest, mapper.pixel_size, card, shared)


def make_shard(shard: Shard, mapper: Mapper | None = None) -> ShardCard:
    """Make the file of ``shard``, unless it stands there finished, and return its card.

    A killed run is gone on with. Nothing but the shard's own file, and the scene's context beside it, is written.

    Args:
        shard: the task.
        mapper: where this process has loaded the model; progress is told to it.

    Raises:
        SceneError: the scene, or the software, is not what it was when the shards were cut.
        LockError: another process is making it.
    """
    done = finished(shard)
    if done is not None:
        return done
    if shard.card.window is None:
        write_empty(shard.path, shard.card)
        return shard.card
    mapper = mapper or _mapper(shard.options.model_dump_json(), shard.model, shard.digest, shard.pixel_size)
    start, stats, window = perf_counter(), Stats(), Window(*shard.card.window)
    wanted = Wanted(shard.card.confidence, shard.card.probabilities)
    with mapper.open(Path(shard.card.scene)) as scene, bounded_cache(cache_for(scene)):
        _refuse_changed(shard, mapper.mark(scene, wanted))
        mark = {**shard.card.mark, "window": tuple(window)}
        with (
            Journal(shard.path, mark, resume=True) as journal,
            ShardWriter(shard.path, shard.card) as writer,
            closing(mapper.strips(scene, wanted, stats, journal, part=window, canvases=shard.canvases)) as strips,
        ):
            counts = np.zeros(len(mapper.table), np.int64)
            for strip in strips:
                writer.write(strip.row, strip.labels, _shares(strip))
                counts += count_classes(strip.labels, len(mapper.table))
            told = {"pixels": tuple(counts.tolist()), "facts": vars(stats) | {"seconds": perf_counter() - start}}
            writer.card = shard.card.model_copy(update=told)
    return writer.card


def finished(shard: Shard) -> ShardCard | None:
    """Return the card of the shard's own finished file; None where there is none, or one of another map."""
    card = read_card(shard.path) if shard.path.is_file() else None
    return card if card and (card.mark, card.index, card.window) == (shard.card.mark, shard.card.index, shard.card.window) else None


def shard_path(out: Path, index: int, count: int) -> Path:
    """Return where shard ``index`` of ``count`` of the result ``out`` stands: beside it."""
    return out.with_name(f"{out.stem}.{index}-of-{count}.tif")


def canvas_folder(part: Path, mark: Mapping[str, Any]) -> Path:
    """Return where the context of the map with this mark, whose shards are parts of ``part``, is kept."""
    digest = hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()
    return part.with_name(f".{part.name}.{digest[:12]}.canvas").absolute()


def canvas_folders(part: Path) -> list[Path]:
    """Return where context is kept for shards that are parts of ``part``, of this cut and of earlier ones."""
    return [folder for folder in part.parent.glob(f".{escape(part.name)}.*.canvas") if _CANVAS.fullmatch(folder.name, len(part.name) + 1)]


def absolute(path: Path) -> Path:
    """Return a local path that means the same in every folder."""
    return path if is_remote(path) else path.absolute()


@lru_cache(maxsize=1)
def _mapper(options: str, model: Path, digest: str, pixel_size: float | None) -> Mapper:
    """Return the mapper that this process had for the last shard, or a new one; ``digest`` tells models of one name apart."""
    return Mapper(MapConfig.model_validate_json(options), model, pixel_size=pixel_size, trusted=True)


def _refuse_changed(shard: Shard, mark: dict[str, Any]) -> None:
    here, there = _plain(mark), shard.card.mark
    if changed := sorted(key for key in here if here[key] != there.get(key)):
        raise SceneError(f"{shard.name}: not what it was when it was cut: {', '.join(changed)}", hint="cut anew: start the run again")


def _shares(strip: Strip) -> list[Floats]:
    odds = [] if strip.probabilities is None else [*strip.probabilities]
    return odds if strip.confidence is None else [strip.confidence, *odds]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is left of ``values`` in JSON, where a tuple is a list."""
    return dict(json.loads(json.dumps(values, default=str)))


def _digest(windows: Iterable[Window | None]) -> str:
    return hashlib.sha256(repr([window and tuple(window) for window in windows]).encode()).hexdigest()[:16]
