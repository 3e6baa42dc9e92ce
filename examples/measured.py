"""What the measuring examples share: a command in a process of its own, so that its seconds and its peak memory are its own."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from time import monotonic


def run(folder: Path, name: str, *words: object) -> dict:
    """Run one command on the workspace in ``folder``, or read what it gave before.

    Returns:
        The command's JSON with ``line`` (as typed), ``wall`` (seconds) and ``peak`` (MB).
    """
    record = folder / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text())
    line = ["rsdistill", *map(str, words), "--work", str(folder / "work")]
    start = monotonic()
    process = subprocess.Popen([sys.executable, "-m", *line, "--json", "-q"], stdout=subprocess.PIPE)
    printed, (_, status, usage) = process.stdout.read(), os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {shlex.join(line)}")
    made = json.loads(printed) | {"line": shlex.join(line), "wall": monotonic() - start, "peak": usage.ru_maxrss / 1024}
    record.write_text(json.dumps(made, indent=1))
    return made


def percent(runs: list[dict], key: str) -> str:
    """Return mean ± standard deviation of a share, in per cent."""
    values = [100 * one[key] for one in runs]
    return f"{mean(values):.1f} ± {stdev(values):.1f}"
