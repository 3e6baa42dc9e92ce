"""Which tiles a tile set has: blocks cut and tiles laid before anything is read, split and sifted once it is known what they hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rsdistill.data.intake import Intake
from rsdistill.data.sampling import Block, choose_block, cut_blocks, lay_tiles, share_out, spoiled_tiles
from rsdistill.errors import ConfigError, nearest
from rsdistill.geo.tile_index import TileRow
from rsdistill.geo.tiles import SPLITS, Tile
from rsdistill.geo.windows import Grid, Window


@dataclass(frozen=True)
class Layout:
    """Where the tiles of a set lie, before anything is read."""

    tile: int
    overlap: int
    blocks: tuple[Block, ...]
    splits: tuple[str | None, ...]
    """Per block, the split that was asked for by name; None where it is to be shared out."""
    tiles: tuple[tuple[int, Window], ...]
    """(position of the block, window) of every tile, scene by scene."""

    def of_scene(self, scene: int) -> list[Window]:
        """Windows of one scene's tiles, in the order of :attr:`tiles`."""
        return [window for block, window in self.tiles if self.blocks[block].scene == scene]


@dataclass(frozen=True)
class SplitRule:
    """How tiles are parted into train, val and test."""

    by: Literal["block", "scene"] = "block"
    fractions: Mapping[str, float] = field(default_factory=dict)
    """Share of blocks (or scenes) for ``val`` and ``test``."""
    named: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Scenes (stems, names, or patterns like ``2024*``) that go to ``val`` or ``test`` whole; the split's fraction then counts no more."""
    block: int | None = None
    """Side of a block in pixels; chosen where it is None."""
    seed: int = 0

    @property
    def wanted(self) -> dict[str, float]:
        """The fractions of splits that no scene was named for."""
        named = {split for split, patterns in self.named.items() if patterns}
        return {split: share for split, share in self.fractions.items() if share and split not in named}


def lay_out(intakes: Sequence[Intake], tile: int, overlap: int, rule: SplitRule) -> Layout:
    """Cut the scenes into blocks and lay tiles over each.

    Raises:
        ConfigError: a scene that was named for a split does not exist, or was named for two.
    """
    named = _named_splits({one.name: one.scene.path.stem for one in intakes}, rule.named)
    whole = rule.by == "scene" or not rule.wanted
    free = [one.size for one in intakes if one.name not in named and one.label is not None]
    side = rule.block or (tile if whole else choose_block(free, tile))
    blocks: list[Block] = []
    for i, one in enumerate(intakes):
        if whole or one.name in named:
            blocks.append(Block(i, one.scene.grid.window))
        else:
            blocks += [Block(i, window) for window in cut_blocks(*one.size, side, tile)]
    default = None if rule.wanted else "train"
    splits = tuple(named.get(intakes[block.scene].name, default) for block in blocks)
    tiles = tuple((k, window) for k, block in enumerate(blocks) for window in lay_tiles(block.window, tile, overlap))
    return Layout(tile, overlap, tuple(blocks), splits, tiles)


def _named_splits(stems: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The split of every scene (name: stem of its file) that a pattern matches by either."""
    names = list(stems)
    found: dict[str, str] = {}
    for split, patterns in wanted.items():
        for pattern in patterns:
            matching = [name for name, stem in stems.items() if fnmatch(name, pattern) or fnmatch(stem, pattern)]
            if not matching:
                missing = f"--{split}-scenes: no scene is called '{pattern}'{nearest(pattern, names)}"
                raise ConfigError(missing, hint="scenes: " + ", ".join(names))
            for name in matching:
                if found.setdefault(name, split) != split:
                    raise ConfigError(f"scene '{name}' was named for {found[name]} and for {split}", hint="a scene has one split")
    return found


def split_tiles(
    layout: Layout, classes: NDArray[np.int64], valid: NDArray[np.int64], names: Sequence[str], rule: SplitRule, min_valid: float
) -> list[TileRow]:
    """Give every block its split, and return the tiles that are of use, in their order.

    Left out are tiles without any valid pixel or with less than ``min_valid`` of them, and validation and test tiles without labels.

    Args:
        layout: N tiles.
        classes: (N, K) pixels of each class in each tile.
        valid: (N,) valid pixels in each tile.
        names: of the scenes.
        rule: what the split is to be.
        min_valid: least share of valid pixels.
    """
    of_block = np.zeros((len(layout.blocks), classes.shape[1]), np.int64)
    np.add.at(of_block, [block for block, _ in layout.tiles], classes)
    splits = list(layout.splits)
    free = [k for k, split in enumerate(splits) if split is None]
    for k, split in zip(free, share_out(of_block[free], rule.wanted, rule.seed), strict=True):
        splits[k] = split
    rows = []
    for (block, window), counts, known in zip(layout.tiles, classes, valid.tolist(), strict=True):
        split, area = splits[block] or "train", window.height * window.width
        labelled = bool(counts.any())
        if known and known >= min_valid * area and (labelled or split == "train"):
            rows.append(TileRow(names[layout.blocks[block].scene], window, split, labelled, known / area, tuple((counts / area).tolist())))
    return rows


def without_spoiled(rows: Sequence[TileRow], names: Sequence[str], grids: Sequence[Grid]) -> list[TileRow]:
    """The tiles without those that show ground which another scene's validation or test tile keeps."""
    tiles = [Tile(names.index(row.scene), row.window, row.split, row.labelled) for row in rows]
    spoiled = spoiled_tiles(tiles, grids)
    return [row for i, row in enumerate(rows) if i not in spoiled]


def class_pixels(rows: Sequence[TileRow], classes: int) -> dict[str, tuple[int, ...]]:
    """Per split, labelled pixels of each class, as tiles hold them."""
    totals = {split: np.zeros(classes) for split in SPLITS}
    for row in rows:
        totals[row.split] += np.array(row.shares) * (row.window.height * row.window.width)
    return {split: tuple(int(value) for value in np.rint(total)) for split, total in totals.items()}
