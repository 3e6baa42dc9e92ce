"""rsdistill: very large remote-sensing scenes, segmented on small machines.

Each command of the command line is a function here, imported on first use: ``rsdistill.predict("scene.tif", out=["mask.tif"])``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

COMMANDS = (
    "tile",
    "train_teacher",
    "distill",
    "predict",
    "merge",
    "evaluate",
    "compare",
    "export",
    "info",
    "check",
    "style",
    "bench",
    "demo",
)
"""The commands that exist; each is a function of the module of that name in ``rsdistill.commands``."""

__all__ = ["COMMANDS", "__version__", *COMMANDS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in COMMANDS:
        return getattr(import_module(f"rsdistill.commands.{name}"), name)
    raise AttributeError(f"module 'rsdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
