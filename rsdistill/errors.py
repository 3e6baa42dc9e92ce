"""The tree of errors that rsdistill raises; each carries a hint and the exit code of the command line.

RsdistillError                      what, in which file
├── InputError (exit 2)             bad input or usage
│   ├── ConfigError                 an option or a configuration key
│   ├── SceneError                  a raster that cannot be taken
│   ├── LabelError                  labels that do not fit the scene or the class table
│   ├── ClassTableError             the class table itself
│   ├── TileSetError                a tile set that is missing, broken or unfit for the task
│   ├── CheckpointError             a model file that is not ours or does not fit
│   ├── MaskError                   a label raster or polygon layer that cannot be used
│   └── OutputExistsError           a result already stands under that name
├── MachineError (exit 3)       the machine, not the input
│   ├── DiskError                   space, permission, folder
│   ├── MemoryLimitError            more memory than there is or was allowed
│   ├── LockError                   another run holds the output
│   ├── DeviceError                 the accelerator that was asked for
│   ├── WeightsError                pretrained weights that cannot be had
│   └── MissingExtraError           an optional package
├── DivergedError (exit 4)          training left the finite numbers
└── PartialFailureError (exit 6)         some of many inputs failed
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_FOLDED = re.compile(r"\b(https?|s3|gs|az|ftp):/(?!/)")
"""What Path makes of the start of a URL."""


class RsdistillError(Exception):
    """An error that a person can act on: one line of what and where, and a hint."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(_FOLDED.sub(r"\1://", message))
        self.hint = hint


class InputError(RsdistillError):
    """Bad input or usage."""


class ConfigError(InputError):
    """An option or a configuration key has no meaning."""


class SceneError(InputError):
    """A raster cannot be taken as a scene."""


class LabelError(InputError):
    """Labels do not fit their scene or the class table."""


class ClassTableError(InputError):
    """The class table is broken."""


class TileSetError(InputError):
    """A tile set is missing, broken or unfit for the task."""


class CheckpointError(InputError):
    """A model file is not one of ours, or does not fit what it is used on."""


class MaskError(InputError):
    """A label raster or polygon layer cannot be used."""


class OutputExistsError(InputError):
    """A result already stands under the name that was asked for."""


class MachineError(RsdistillError):
    """The machine refused: disk, memory, permission, device."""

    exit_code = 3


class DiskError(MachineError):
    """A file could not be written: space, permission or a missing folder."""


class MemoryLimitError(MachineError):
    """The task needs more memory than there is or was allowed."""


class LockError(MachineError):
    """Another run holds the output."""


class DeviceError(MachineError):
    """The accelerator that was asked for is not there or failed."""


class WeightsError(MachineError):
    """Pretrained weights cannot be had."""


class MissingExtraError(MachineError):
    """An optional package is not installed."""


class DivergedError(RsdistillError):
    """Training produced a number that is not finite."""

    exit_code = 4


class PartialFailureError(RsdistillError):
    """Some of many inputs failed; the others' results stand."""

    exit_code = 6


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the name in ``words`` closest to ``word``, or an empty string."""
    close = get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
