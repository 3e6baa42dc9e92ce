"""One shard in this process: a task of an array job, or one of several machines that share a folder and nothing else."""

import os
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

from rsdistill.errors import ConfigError
from rsdistill.geo.files import refuse_existing
from rsdistill.inference.blending import Wanted
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.products import Products
from rsdistill.inference.sharding import absolute, canvas_folder, finished, lay_out, make_shard, shard_of, shard_path
from rsdistill.outputs.shards import EMPTY_SUFFIX, ShardCard
from rsdistill.reporting import Progress

MOST = 1_000_000
"""Shards of a map."""
ARRAY_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX")
"""Where Slurm, an indexed job of Kubernetes and AWS Batch say which task of an array this is; the last two count from 0."""


def parse_shard(text: str, variables: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return which shard of how many ``text`` means: ``3/8``, or ``auto/8`` in a task of an array job.

    Raises:
        ConfigError: it means none.
    """
    named, _, total = text.partition("/")
    if not total.isdecimal() or not (named == "auto" or named.isdecimal()):
        raise ConfigError(f"shard '{text}' is not i/n", hint="3/8 is the third of eight, auto/8 asks the array job")
    index, count = _array_index(variables) if named == "auto" else int(named), int(total)
    if count > MOST:
        raise ConfigError(f"{count} shards are more than the {MOST} that a map may be cut into", hint="give --shard i/n a smaller n")
    if not 1 <= index <= count:
        raise ConfigError(f"there is no shard {index} of {count}", hint="shards count from 1 to n")
    return index, count


def make_one_shard(
    mapper: Mapper, path: Path, products: Products, index: int, count: int, look: Mapping[str, Any], *, overwrite: bool
) -> tuple[Path, ShardCard]:
    """Make shard ``index`` of ``count`` of a scene beside what it is a part of; a finished one is left as it is.

    Returns:
        Its file, or the marker that nothing was left for it; and its card.

    Raises:
        OutputExistsError: a shard of something else stands there.
        InputError: the scene cannot be taken, or an option does not fit.
    """
    out = (products.of_kind("raster") or products.paths)[0]
    wanted = Wanted(products.confidence is not None, products.probabilities is not None)
    with mapper.open(absolute(path)) as scene:
        layout = lay_out(mapper, scene, wanted, count, look)
    place = shard_path(out, index, count)
    shard = shard_of(layout, mapper, index, place, canvas_folder(out.with_suffix(""), layout.card["mark"]))
    if finished(shard):
        mapper.progress.message(f"{shard.path} is finished")
    else:
        refuse_existing([place, place.with_suffix(EMPTY_SUFFIX)], overwrite)
        place.unlink(missing_ok=True)
        place.with_suffix(EMPTY_SUFFIX).unlink(missing_ok=True)
    told = copy(mapper)
    told.progress = _TasksOnly(mapper.progress)
    return shard.path, make_shard(shard, told)


class _TasksOnly:
    """Progress that says nothing twice: what there is to say of the scene was said when it was cut."""

    def __init__(self, progress: Progress) -> None:
        self.task = progress.task

    def message(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


def _array_index(variables: Mapping[str, str]) -> int:
    """Return the number of this task, from 1. Slurm counts as the person says: an array that begins at 0 is told by its first number."""
    for name in ARRAY_VARIABLES:
        value = variables.get(name, "")
        if value.isdecimal():
            from_one = name.startswith("SLURM") and variables.get("SLURM_ARRAY_TASK_MIN", "1") != "0" and value != "0"
            return int(value) if from_one else int(value) + 1
    raise ConfigError("this is no task of an array job", hint="looked for " + ", ".join(ARRAY_VARIABLES) + "; give --shard i/n")
