"""What mapping costs, from a simulated schedule of shards on workers: python examples/cost.py docs/benchmarks/cost.json [CORE GPU GB]."""

import json
import sys
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from math import ceil
from pathlib import Path

from measured import publish

from rsdistill.inference.scaling import SHARDS_A_WORKER

JOBS = {"1 scene": (1, 10_000, 4), "10 scenes": (10, 10_000, 16), "1 000 scenes": (1000, 10_000, 256), "1 mosaic": (1, 10**6, 64)}
"""Scenes, their side in pixels, and the workers that map them."""
PRICES = (0.05, 1.5, 0.02)
"""Of a core for an hour, an accelerator with its cores for an hour, and a gigabyte for a month. Assumed: give your own."""
OPERATIONS, CORES = 10e12, 8
"""Operations a second that an accelerator sustains, and the cores beside it. Assumed, since none was at hand."""
HEAD = "| | student | workers | core-hours | hours | % at work | disk, GB | money | *GPU-hours* | *money* |\n|---|---|" + "--:|" * 8


def simulate(sizes: Sequence[float], workers: int, rates: dict[str, float], side: int = 4096) -> tuple[float, float]:
    """Map scenes of so many pixels: a worker that is free takes the next shard, or first a scene to put together whose shards are done.

    Returns:
        Seconds until the last map stands, and seconds of all workers at work.
    """
    free, merges, busy = [rates["start"]] * workers, [], rates["start"] * workers
    for pixels in sizes:
        count = max(ceil(pixels / side**2), ceil(SHARDS_A_WORKER * workers / len(sizes)))
        shard, merge, last = rates["shard"] + pixels / count * rates["pixel"], pixels * rates["merge"], 0.0
        for _ in range(count):
            while merges and merges[0][0] <= free[0]:
                heapreplace(free, free[0] + heappop(merges)[1])
            last = max(last, free[0] + shard)
            heapreplace(free, free[0] + shard)
        heappush(merges, (last, merge))
        busy += count * shard + merge
    while merges:
        ready, merge = heappop(merges)
        heapreplace(free, max(ready, free[0]) + merge)
    return max(free), busy


def row(name: str, rates: dict[str, float], core: float, accelerator: float, gigabyte: float) -> str:
    """Return one line of the table."""
    scenes, side, workers = JOBS[name]
    (end, busy), pixels = simulate([side**2] * scenes, workers, rates), scenes * side**2
    disk, beside = pixels * rates["bytes"] / 1e9, rates["pixel"] * (1 - rates["network_share"]) / CORES
    hours, merged = pixels * max(rates["operations"] / OPERATIONS, beside) / 3600, pixels * rates["merge"] / 3600
    money, paper = (one + disk * gigabyte for one in (busy / 3600 * core, hours * accelerator + merged * core))
    figures = [busy / 3600, end / 3600, 100 * busy / end / workers, disk, money]
    cells = ["< 0.001" if one < 0.001 else f"{one:.3g}" for one in figures] + [f"*{one:.1g}*" for one in (hours, paper)]
    return " | ".join([f"| {name} of {side:,}²".replace(",", " "), str(rates["student"]), f"{workers}", *cells]) + " |"


if __name__ == "__main__":
    prices, found = tuple(map(float, sys.argv[2:])) or PRICES, json.loads(Path(sys.argv[1]).read_text())
    publish(Path("docs/explanation/cost.md"), "cost", "\n".join([HEAD, *(row(name, rates, *prices) for rates in found for name in JOBS)]))
