"""From the shards of a map to its files, the same as if it had been made in one piece."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rsdistill.errors import MaskError
from rsdistill.geo.interest import area_of_interest
from rsdistill.inference.products import Look, Products, temporary_mask, write_drawn
from rsdistill.outputs.geotiff import FloatRasterWriter, LabelRasterWriter
from rsdistill.outputs.shards import EMPTY_SUFFIX, ShardCard, pieces_of, read_card, unreadable

NAME = re.compile(r"(?P<stem>.+)\.(?P<index>\d+)-of-(?P<count>\d+)(?P<suffix>\.tif|\.empty)")
AGAIN = "delete them and run their --shard again"
NAMED = 8
"""Files that a message names before it says how many more there are."""


@dataclass(frozen=True)
class Shards:
    """All shards of one map."""

    files: tuple[tuple[Path, ShardCard], ...]

    @property
    def card(self) -> ShardCard:
        """What they have in common."""
        return self.files[0][1]

    @property
    def facts(self) -> dict[str, float]:
        """What all of them took together, and which one took longest."""
        told = [card.facts for _, card in self.files]
        sums = {key: sum(facts.get(key, 0) for facts in told) for key in ("windows", "skipped", "network_seconds", "seconds")}
        slowest = max((card.facts.get("seconds", 0.0), card.index) for _, card in self.files)
        overlap = max(facts.get("overlap_factor", 1.0) for facts in told)
        return sums | {"overlap_factor": overlap, "shards": len(told), "slowest_seconds": slowest[0], "slowest_shard": slowest[1]}


def find_shards(places: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return the files of shards among ``places``, and in the folders among them, by the result (without suffix) that they are parts of.

    Raises:
        MaskError: there is none.
    """
    given = [file for place in places for file in (sorted(place.iterdir()) if place.is_dir() else [place])]
    files = {file.resolve(): file for file in given}.values()  # each once, by whatever ways it was named
    found: dict[Path, list[Path]] = {}
    for file in files:
        if (match := NAME.fullmatch(file.name)) and not file.name.startswith("."):
            found.setdefault(file.with_name(match["stem"]), []).append(file)
    if not found:
        named = ", ".join(map(str, places))
        raise MaskError(f"no shard in {named}", hint="rsdistill predict --shard i/n writes NAME.i-of-n.tif")
    return found


def gather(files: Sequence[Path]) -> Shards:
    """Read the cards of the shards of one map and check that they are all of it and nothing else.

    Raises:
        MaskError: names the shards that are missing, or that belong to something else.
    """
    by_count: dict[int, dict[int, Path]] = {}
    for file in files:
        match = NAME.fullmatch(file.name)
        assert match, file
        one = by_count.setdefault(int(match["count"]), {})
        index = int(match["index"])
        if index in one:
            raise MaskError(f"{one[index]} and {file} are the same shard", hint="delete one of them")
        one[index] = file
    if len(by_count) > 1:
        examples = ", ".join(str(shards[min(shards)]) for shards in by_count.values())
        raise MaskError(f"shards of several cuts stand side by side: {examples}", hint="delete those of all cuts but one")
    ((count, shards),) = by_count.items()
    _refuse_missing(shards, count)
    cards = {path: read_card(path) for path in shards.values()}
    if broken := [path for path, card in cards.items() if card is None]:
        raise MaskError(f"no shards, or cut short: {_listed(broken)}", hint=AGAIN)
    whole = tuple((path, card) for _, path in sorted(shards.items()) if (card := cards[path]))
    _refuse_foreign(whole)
    return Shards(whole)


def write_map(shards: Shards, products: Products, look: Look) -> list[int]:
    """Write the files of a map from its shards and return the count of pixels of each class.

    Raises:
        MaskError: a shard cannot be read.
        DiskError: a file cannot be written.
    """
    card, masks = shards.card, products.of_kind("raster")
    scene = Path(card.scene) if card.pictured and Path(card.scene).exists() else None
    how: dict[str, Any] = {name: getattr(look, name) for name in ("compress", "creation_options", "tags", "overwrite")}
    with ExitStack() as stack:
        masks = masks or [temporary_mask(stack, products.outs)]
        try:
            for mask in masks:
                LabelRasterWriter(mask, card.grid, card.table, **how).assemble(pieces_of(shards.files))
            if products.confidence:
                FloatRasterWriter(products.confidence, card.grid, **how).assemble(pieces_of(shards.files, 2))
            if products.probabilities:
                first = 3 if card.confidence else 2
                FloatRasterWriter(products.probabilities, card.grid, card.table.names, **how).assemble(pieces_of(shards.files, first))
        except Exception as error:
            if broken := unreadable(shards.files):
                raise MaskError(f"shards that cannot be read: {_listed(broken)}", hint=AGAIN) from error
            raise
        write_drawn(masks[0], card.table, products, look, scene)
    return [sum(counts) for counts in zip(*(one.pixels for _, one in shards.files if one.window), strict=True)]


def look_of(card: ShardCard, *, overwrite: bool, changed: Mapping[str, Any] | None = None) -> Look:
    """Return how the run that made the shards was asked to write the map, but for what is ``changed``.

    Raises:
        LabelError: its polygons of interest are not there any more.
    """
    told = {**card.look, **(changed or {})}
    aoi = told.pop("aoi", None)
    return Look(**told, aoi=area_of_interest(Path(aoi), card.grid) if aoi else None, overwrite=overwrite)


def _refuse_missing(shards: Mapping[int, Path], count: int) -> None:
    any_path = next(iter(shards.values()))
    match = NAME.fullmatch(any_path.name)
    assert match
    if count > len(shards):
        first = islice((index for index in range(1, count + 1) if index not in shards), NAMED)
        names = [any_path.with_name(f"{match['stem']}.{index}-of-{count}.tif") for index in first]
        missing = count - len(shards)
        raise MaskError(f"{missing} of {count} shards are missing: {_listed(names, missing)}", hint="run their --shard i/n")


def _refuse_foreign(shards: Sequence[tuple[Path, ShardCard]]) -> None:
    """Refuse shards whose card says something else than their name, or than the cards of most."""
    for path, card in shards:
        match = NAME.fullmatch(path.name)
        assert match
        if (card.index, card.count) != (int(match["index"]), int(match["count"])) or (card.window is None) != (path.suffix == EMPTY_SUFFIX):
            raise MaskError(f"{path} is shard {card.index} of {card.count} by its card", hint="was it renamed? delete it and make it again")
    common, _ = Counter(_key(card) for _, card in shards).most_common(1)[0]
    model = next(card for _, card in shards if _key(card) == common)
    if foreign := [(path, card) for path, card in shards if _key(card) != common]:
        marks = [card.mark for _, card in foreign]
        differing = {key for mark in marks for key in mark.keys() | model.mark if mark.get(key) != model.mark.get(key)}
        what = ", ".join(sorted(differing)) or "place"
        names = _listed([path for path, _ in foreign])
        raise MaskError(f"shards of another run ({what} differ from the others'): {names}", hint=AGAIN)


def _key(card: ShardCard) -> str:
    return card.model_dump_json(exclude={"index", "window", "pixels", "facts", "look", "scene"})


def _listed(paths: Sequence[Path], count: int | None = None) -> str:
    """Name the first of some paths, of which there are ``count`` (default: as many as are given)."""
    beyond = (count or len(paths)) - NAMED
    more = f" and {beyond} more" if beyond > 0 else ""
    return ", ".join(map(str, paths[:NAMED])) + more
