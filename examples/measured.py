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
    """Run one command on the workspace in ``folder``, or read what the same command gave before; training that was cut off goes on.

    Returns:
        The command's JSON with ``line`` (as typed), ``wall`` (seconds) and ``peak`` (MB).
    """
    record = folder / f"{name}.json"
    line = ["rsdistill", *map(str, words), "--work", str(folder / "work")]
    if record.exists() and (made := json.loads(record.read_text()))["line"] == shlex.join(line):
        return made
    print(f"{name}: {shlex.join(line)}", file=sys.stderr, flush=True)
    again = ["--overwrite", *(["--resume"] if words[0] in ("train-teacher", "distill") else [])]
    start = monotonic()
    process = subprocess.Popen([sys.executable, "-m", *line, *again, "--json", "-q"], stdout=subprocess.PIPE)
    printed, (_, status, usage) = process.stdout.read(), os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {shlex.join(line)}")
    made = json.loads(printed) | {"line": shlex.join(line), "wall": monotonic() - start, "peak": usage.ru_maxrss / 1024}
    record.write_text(json.dumps(made, indent=1))
    return made


def percent(runs: list[dict], key: str) -> str:
    """Return mean ± standard deviation of a share, in per cent."""
    values = [100 * one[key] for one in runs]
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def publish(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the page's comments ``<!-- name -->`` and ``<!-- /name -->``, at its end where it has none yet."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = page.read_text() if page.exists() else ""
    before, found, rest = whole.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    page.write_text(f"{before if found else before.rstrip() + chr(10) * 2}{begin}\n{text.strip()}\n{end}{after}")
