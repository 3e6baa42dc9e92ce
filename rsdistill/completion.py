"""Shell completion: what may stand after a flag, looked up only when a person presses tab.

Names come from the tables that the commands themselves read: methods, networks, datasets, models in the workspace, classes of a table.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def completer(name: str, choices: list[str]) -> Callable[[Any, str], list[str]] | None:
    """Return the function that completes the option ``name``: from its fixed ``choices`` or from a table; None where nothing is known."""
    if choices:
        return lambda ctx, incomplete: _beginning(choices, incomplete)
    look_up = TABLES.get(name)
    if look_up is None:
        return None
    return lambda ctx, incomplete: _last_part(look_up(ctx.params), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _last_part(names: Iterable[str], incomplete: str) -> list[str]:
    """Complete the last of several names that are joined by ``+`` or a comma."""
    cut = max(incomplete.rfind("+"), incomplete.rfind(",")) + 1
    return [incomplete[:cut] + name for name in _beginning(names, incomplete[cut:])]


def _methods(given: dict[str, Any]) -> list[str]:
    from rsdistill.methods import METHODS

    return list(METHODS)


def _networks(given: dict[str, Any]) -> list[str]:
    from rsdistill.models import ARCHITECTURES

    return list(ARCHITECTURES)


def _datasets(given: dict[str, Any]) -> list[str]:
    from rsdistill.data.presets import PRESETS

    return list(PRESETS)


def _protocols(given: dict[str, Any]) -> list[str]:
    from rsdistill.data.presets import PRESETS

    known = [PRESETS[given["dataset"]]] if given.get("dataset") in PRESETS else PRESETS.values()
    return list(dict.fromkeys(protocol for preset in known for protocol in preset.protocols))


def _models(given: dict[str, Any]) -> list[str]:
    """Models in the workspace."""
    work = Path(given.get("work") or os.environ.get("RSDISTILL_WORK", "work"))
    return sorted(path.stem for path in work.glob("*.safetensors"))


def _classes(given: dict[str, Any]) -> list[str]:
    """Names in the class table that was named, or in classes.toml here or beside the labels."""
    from rsdistill.errors import RsdistillError
    from rsdistill.geo.classes import load_class_table

    beside = [Path(place) for place in given.get("labels") or ()]
    folders = [Path(), *(place if place.is_dir() else place.parent for place in beside)]
    named = [Path(given["classes"])] if given.get("classes") else [folder / "classes.toml" for folder in folders]
    for path in named:
        try:
            return list(load_class_table(path).names)
        except RsdistillError:
            continue
    return []


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "method": _methods,
    "methods": _methods,
    "student": _networks,
    "arch": _networks,
    "dataset": _datasets,
    "protocol": _protocols,
    "model": _models,
    "beside": _models,
    "burn": _classes,
    "background": _classes,
}
"""Name of an option → what completes it, given the options that stand before it."""
