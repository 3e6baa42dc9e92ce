"""The datasets of the papers: where their files lie, what their label values mean, and which scenes belong to which split.

The facts come from torchgeo's dataset classes where it has them; files are read by this package, so that a preset is a list of scenes and
labels and nothing more. Nothing is downloaded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rsdistill.errors import ConfigError, nearest
from rsdistill.geo.classes import COLORS, ClassTable, LandClass


class PresetScene(NamedTuple):
    """One scene of a dataset."""

    path: Path
    label: Path | None
    split: str | None
    """None where the dataset says nothing: it is shared out with the others of its kind."""


@dataclass(frozen=True)
class Preset:
    """A dataset's layout on disk."""

    layouts: tuple[str, ...]
    """Patterns of the scenes below the root, in the dataset's own folders; the first that finds a file counts."""
    label: Callable[[Path], Path]
    """The label file of a scene."""
    table: Callable[[], ClassTable]
    protocols: dict[str, Callable[[Path, Path], str | None]]
    """Name → function of (root, scene) that gives the split; the first is the default."""
    rule: str
    """What a figure of the papers counts."""
    own_layouts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Patterns of the scenes for protocols that are about other files."""


def open_preset(name: str, root: Path, protocol: str | None = None) -> tuple[list[PresetScene], ClassTable, str]:
    """Find the scenes of a dataset.

    Args:
        name: a key of :data:`PRESETS`.
        root: folder that the dataset was unpacked in.
        protocol: how it is split; the preset's first where it is None.

    Returns:
        the scenes, the class table, and the metric rule in words.

    Raises:
        ConfigError: no such preset or protocol, or no scene below ``root``; says which files were looked for.
    """
    if name not in PRESETS:
        raise ConfigError(f"no dataset is called '{name}'{nearest(name, PRESETS)}", hint="datasets: " + ", ".join(PRESETS))
    preset = PRESETS[name]
    protocol = protocol or next(iter(preset.protocols))
    if protocol not in preset.protocols:
        known = ", ".join(preset.protocols)
        raise ConfigError(f"{name} has no protocol '{protocol}'{nearest(protocol, preset.protocols)}", hint=f"protocols: {known}")
    layouts = preset.own_layouts.get(protocol, preset.layouts)
    found = next((paths for pattern in layouts if (paths := sorted(root.glob(pattern)))), [])
    if not found:
        looked = " or ".join(str(root / pattern) for pattern in layouts)
        raise ConfigError(f"no scene of {name}: looked for {looked}", hint="--root names the folder that the dataset was unpacked in")
    split = preset.protocols[protocol]
    pairs = [(path, preset.label(path)) for path in found]
    return [PresetScene(path, label if label.exists() else None, split(root, path)) for path, label in pairs], preset.table(), preset.rule


def _by_lists(root: Path, path: Path) -> str | None:
    """The split whose list in the root (``train.txt``, ``val.txt``, ``test.txt``; one name a line) holds the scene."""
    for split in ("train", "val", "test"):
        file = root / f"{split}.txt"
        if file.is_file() and _key(path.name) in _keys(file, file.stat().st_mtime_ns):
            return split
    raise ConfigError(f"{path.name} is in none of train.txt, val.txt and test.txt of {root}", hint="their lines are names of scenes")


@lru_cache(maxsize=3)
def _keys(file: Path, changed: int) -> frozenset[str]:
    """The names in a list; read once for thousands of scenes."""
    return frozenset(map(_key, file.read_text(encoding="utf-8").split()))


def _key(name: str) -> str:
    """A scene's name without folder, suffix and the endings that datasets add."""
    return re.sub(r"_(sat|RGBIR|mask|label)$", "", Path(name).stem)


def _by_folder(root: Path, path: Path) -> str | None:
    """The split that a folder on the way to the scene is named after."""
    parts = [part.lower() for part in path.relative_to(root).parts[:-1]]
    for split, names in {"train": ("train", "training_data"), "val": ("val", "validation_data"), "test": ("test", "test_data")}.items():
        if any(part in names for part in parts):
            return split
    return None


def _shared_out(root: Path, path: Path) -> str | None:
    return None


def _inria(root: Path, path: Path) -> str | None:
    """Images 1 to 5 of each city validate."""
    number = re.search(r"(\d+)$", path.stem)
    return "val" if number and int(number[1]) <= 5 else "train"


def _isprs(dataset: str) -> Callable[[Path, Path], str | None]:
    def split(root: Path, path: Path) -> str | None:
        splits = getattr(_torchgeo(), dataset).splits
        names = {_key(name): split for split, listed in splits.items() for name in listed}
        return names.get(_key(path.name), "train")

    return split


def _isprs_table() -> ClassTable:
    source = _torchgeo().Potsdam2D
    order = [*range(1, len(source.classes)), 0]
    return ClassTable(tuple(LandClass(i, source.classes[k].lower(), _hex(source.colormap[k])) for i, k in enumerate(order, start=1)))


def _deepglobe_table() -> ClassTable:
    """The challenge's order; unknown (black) is ignored."""
    source = _torchgeo().DeepGlobeLandCover
    pairs = list(zip(source.classes, source.colormap, strict=True))[:-1]
    return ClassTable(tuple(LandClass(i, name.lower(), _hex(color)) for i, (name, color) in enumerate(pairs, start=1)), ignore=(0,))


def _landcover_table() -> ClassTable:
    names, colors = ("background", "building", "woodland", "water", "road"), ("#d9d9d9", "#614a4a", "#267300", "#00c5ff", "#cfcfcf")
    return ClassTable(tuple(LandClass(i, *pair) for i, pair in enumerate(zip(names, colors, strict=True))))


def _numbered(names: Sequence[str], ignore: tuple[int, ...] = (0,)) -> Callable[[], ClassTable]:
    """Classes that count from 1."""
    rows = tuple(LandClass(i, name, COLORS[(i - 1) % len(COLORS)]) for i, name in enumerate(names, start=1))
    return lambda: ClassTable(rows, ignore)


def _inria_table() -> ClassTable:
    return ClassTable((LandClass(0, "background", "#d9d9d9"), LandClass(1, "building", "#e6194b", (255,))))


def _whdld_table() -> ClassTable:
    """The numbers and colours of the distributed labels, which hold one or the other."""
    names = ("building", "road", "pavement", "vegetation", "bare soil", "water")
    colors = ("#ff0000", "#ffff00", "#c0c000", "#00ff00", "#808080", "#0000ff")
    return ClassTable(tuple(LandClass(i, *pair) for i, pair in enumerate(zip(names, colors, strict=True), start=1)), ignore=(0,))


def _moved(*changes: tuple[str, str]) -> Callable[[Path], Path]:
    """The path with parts of it replaced, the folder's name and the file's name apart."""

    def label(path: Path) -> Path:
        parts = [path.parent.name, path.name]
        for old, new in changes:
            parts = [part.replace(old, new) for part in parts]
        return path.parent.with_name(parts[0]) / parts[1]

    return label


def _deepglobe_label(path: Path) -> Path:
    name = path.name.replace("_sat.jpg", "_mask.png")
    return _first_there(path.parents[1] / "masks" / name, path.with_name(name))


def _whdld_label(path: Path) -> Path:
    return path.parents[1] / f"{path.parent.name}PNG" / f"{path.stem}.png"


def _landcover_label(path: Path) -> Path:
    """The label of an orthophoto, or of a chip that the dataset's split.py cut from one."""
    return path.with_name(f"{path.stem}_m.png") if path.parent.name == "output" else path.parent.with_name("masks") / path.name


def _gid_label(path: Path) -> Path:
    return path.parents[2] / "ann_dir" / path.parent.name / f"{path.stem}_15label.png"


def _isprs_label(path: Path) -> Path:
    name = path.name.replace("_RGBIR", "_label")
    return _first_there(path.parents[1] / name, path.parents[1] / "5_Labels_all" / name)


def _first_there(*places: Path) -> Path:
    return next((place for place in places if place.exists()), places[-1])


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color[:3])


def _torchgeo() -> Any:
    import torchgeo.datasets

    return torchgeo.datasets


_LISTS = {"lists": _by_lists}
_LOVEDA = ("background", "building", "road", "water", "barren", "forest", "agriculture")
_GID15 = (
    "industrial land", "urban residential", "rural residential", "traffic land", "paddy field", "irrigated land", "dry cropland",
    "garden plot", "arbor woodland", "shrub land", "natural grassland", "artificial grassland", "river", "lake", "pond",
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    "potsdam": Preset(
        ("4_Ortho_RGBIR/*_RGBIR.tif",), _isprs_label, _isprs_table, {"official": _isprs("Potsdam2D"), **_LISTS},
        "24 scenes train, 14 test; papers differ in whether clutter counts",
    ),
    "vaihingen": Preset(
        ("top/*.tif",), _isprs_label, _isprs_table, {"official": _isprs("Vaihingen2D"), **_LISTS},
        "16 scenes train, 17 test; papers differ in whether clutter counts",
    ),
    "deepglobe": Preset(
        ("data/*/images/*_sat.jpg", "*train/*_sat.jpg", "*_sat.jpg"),
        _deepglobe_label, _deepglobe_table, {"official": _by_folder, "shared": _shared_out, "glnet": _by_lists, **_LISTS},
        "unknown does not count; GLNet and its successors use 454/207/142 scenes, named in train.txt, val.txt and test.txt",
    ),
    "inria": Preset(
        ("AerialImageDataset/train/images/*.tif", "train/images/*.tif"), _moved(("images", "gt")), _inria_table,
        {"official": _inria, "glnet": _shared_out, **_LISTS},
        "the papers' figure is the IoU of building alone, on a random split of all cities (--protocol glnet --split-by scene)",
    ),
    "gid15": Preset(
        ("GID/img_dir/*/*.tif", "img_dir/*/*.tif"), _gid_label, _numbered(_GID15), {"official": _by_folder, **_LISTS},
        "background (0) does not count; the test labels are not public",
    ),
    "loveda": Preset(
        ("*/*/images_png/*.png",), _moved(("images_png", "masks_png")), _numbered(_LOVEDA), {"official": _by_folder, **_LISTS},
        "no-data (0) does not count; the test labels are not public",
    ),
    "landcoverai": Preset(
        ("images/*.tif",), _landcover_label, _landcover_table, {"blocks": _shared_out, "official": _by_lists},
        "the official split is of the 512 x 512 chips that split.py cuts (--protocol official); blocks of the orthophotos are shared out "
        "otherwise",
        {"official": ("output/*_[0-9]*.jpg",)},
    ),
    "whdld": Preset(
        ("Images/*.jpg", "images/*.jpg"), _whdld_label, _whdld_table,
        {"shared": _shared_out, **_LISTS},
        "there is no official split: papers share the 4940 images out at random (--split-by scene)",
    ),
}  # fmt: skip
"""The datasets that ``tile --dataset`` knows."""
