"""The benchmark's contestants, one after the other, each measured in a process of its own.

Every contestant gets the same network, scene, windows and number of threads. What it imports and loads, and one small run for what is done
once, comes before the clock starts.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from rsdistill.errors import MachineError
from rsdistill.inference.contestants import Run, Task, bare, memory, ours
from rsdistill.inference.peers import PEERS

CONTESTANTS: dict[str, Callable[[Task], Run]] = {"ours": ours, "bare": bare, **{name: peer.ready for name, peer in PEERS.items()}}
"""Who takes part: each gets ready, and returns what maps a scene and tells the time inside the network."""


@dataclass(frozen=True)
class Measured:
    """What a run took."""

    seconds: float
    cpu_seconds: float
    """Of all its threads."""
    memory_bytes: int
    """At its peak, above what imports and the loaded network take."""
    network_seconds: float = 0.0
    """Wall-clock time inside the network, where the contestant tells."""
    network_cpu_seconds: float = 0.0
    """CPU time likewise."""


def measure(task: Task, warm_up: Path) -> Measured:
    """Run ``task`` in a process of its own, after a run on the small scene ``warm_up``.

    Raises:
        MachineError: it failed.
    """
    code = f"from rsdistill.inference.race import main; main({asdict(task)!r}, {str(warm_up)!r})"
    with TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"{task.who} failed: {reason}", hint="run it alone with rsdistill bench --only")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main(fields: dict[str, Any], warm_up: str) -> None:
    """Be the process of one run: the last line of stdout is what it took, as JSON."""
    task = Task(**fields)
    run = CONTESTANTS[task.who](task)
    run(Path(warm_up))
    before = memory(peak=False)
    start, clock = perf_counter(), process_time()
    inside = run(Path(task.scene))
    found = Measured(perf_counter() - start, process_time() - clock, memory(peak=True) - before, *inside)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
