"""Which tiles a set has: named scenes, blocks, and what is left out."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from rsdistill.data.intake import Intake
from rsdistill.data.layout import SplitRule, class_pixels, lay_out, split_tiles
from rsdistill.errors import ConfigError
from rsdistill.geo.windows import Grid, Window


@dataclass
class Shape:
    """As much of a scene as a layout needs."""

    height: int
    width: int

    path: Path = Path("s.tif")

    @property
    def grid(self) -> Grid:
        return Grid(self.height, self.width, None, Affine.identity())


def intakes(*sizes: tuple[int, int], label: Path | None = Path("l.tif")) -> list[Any]:
    return [Intake("abcdefgh"[i], Shape(*size), label) for i, size in enumerate(sizes)]  # type: ignore[arg-type]


def test_scenes_that_are_named_go_whole():
    rule = SplitRule("block", {"val": 0.2, "test": 0.0}, {"val": ("b",), "test": ()})
    layout = lay_out(intakes((200, 200), (100, 100)), 32, 0, rule)
    assert [(block.scene, block.window) for block in layout.blocks] == [(0, Window(0, 0, 200, 200)), (1, Window(0, 0, 100, 100))]
    assert layout.splits == ("train", "val")
    assert layout.of_scene(1)[0] == Window(0, 0, 32, 32)
    assert len(layout.of_scene(1)) == 16


def test_a_test_share_is_still_cut_from_scenes_that_are_not_named():
    rule = SplitRule("block", {"val": 0.2, "test": 0.1}, {"val": ("b",)})
    layout = lay_out(intakes((200, 200), (100, 100)), 32, 0, rule)
    assert rule.wanted == {"test": 0.1}
    assert sum(block.scene == 0 for block in layout.blocks) > 1
    assert [split for block, split in zip(layout.blocks, layout.splits, strict=True) if block.scene == 1] == ["val"]
    assert {split for block, split in zip(layout.blocks, layout.splits, strict=True) if block.scene == 0} == {None}


def test_scenes_are_named_by_pattern():
    layout = lay_out(intakes((40, 40), (40, 40), (40, 40)), 32, 0, SplitRule(named={"val": ("[ab]",), "test": ("c",)}))
    assert layout.splits == ("val", "val", "test")


def test_scenes_that_share_a_stem_are_named_by_it():
    pair = [replace(one, name=name) for one, name in zip(intakes((40, 40), (40, 40), (40, 40)), ("a_s", "b_s", "c"), strict=True)]
    pair[2].scene.path = Path("other.tif")
    assert lay_out(pair, 32, 0, SplitRule(named={"val": ("s",)})).splits == ("val", "val", "train")
    assert lay_out(pair, 32, 0, SplitRule(named={"val": ("b_s",)})).splits == ("train", "val", "train")


@pytest.mark.parametrize(
    ("named", "message"),
    [({"val": ("x",)}, "no scene is called 'x'"), ({"val": ("a",), "test": ("a*",)}, "'a' was named for val and for test")],
)
def test_names_that_cannot_be_are_refused(named, message):
    with pytest.raises(ConfigError, match=message):
        lay_out(intakes((40, 40), (40, 40)), 32, 0, SplitRule(named=named))


def test_a_split_by_scene_keeps_scenes_whole():
    layout = lay_out(intakes(*[(64, 64)] * 5), 32, 0, SplitRule("scene", {"val": 0.2}))
    classes = np.ones((len(layout.tiles), 2), np.int64)
    rows = split_tiles(layout, classes, np.full(len(classes), 1024), list("abcde"), SplitRule("scene", {"val": 0.2}), 0)
    splits = {name: {row.split for row in rows if row.scene == name} for name in "abcde"}
    assert all(len(found) == 1 for found in splits.values())
    assert sorted(next(iter(found)) for found in splits.values()) == ["train"] * 4 + ["val"]


def test_tiles_of_no_use_are_left_out():
    rule = SplitRule(named={"val": ("b",)})
    layout = lay_out(intakes((32, 96), (32, 64)), 32, 0, rule)
    classes = np.array([[512, 0], [0, 0], [5, 5], [0, 0], [0, 1024]])
    valid = np.array([1024, 1024, 10, 1024, 1024])
    rows = split_tiles(layout, classes, valid, ["a", "b"], rule, 0.5)
    assert [(row.scene, row.window.col, row.split, row.labelled) for row in rows] == [
        ("a", 0, "train", True), ("a", 32, "train", False), ("b", 32, "val", True)
    ]  # fmt: skip
    assert rows[0].shares == (0.5, 0)
    assert class_pixels(rows, 2) == {"train": (512, 0), "val": (0, 1024), "test": (0, 0)}
    valid[:] = 0
    assert split_tiles(layout, classes * 0, valid, ["a", "b"], rule, 0) == []
