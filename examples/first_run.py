"""Measure a first run on real scenes: teacher, ``ce`` and ``kd`` student of equal budget, three seeds each, as a Markdown table.

    python examples/first_run.py SCENES --weights mobilenetv2.safetensors --out first-run

SCENES is a folder of scenes t1.tif … t5.tif with labels beside them and classes.toml; t3 validates, the others train. Every command runs
in a process of its own, so its seconds and its peak memory are its own. What has finished is not run again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev


def run(name: str, *words: object) -> dict:
    """Run one command, or read what it gave before: its JSON, its command line, its seconds and its peak memory in MB."""
    record = given.out / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text())
    line = ["rsdistill", *map(str, words), "--work", str(given.out / "work")]
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *line, "--json", "-q"], stdout=subprocess.PIPE)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {shlex.join(line)}")
    made = json.loads(printed) | {"line": shlex.join(line), "wall": time.monotonic() - start, "peak": usage.ru_maxrss / 1024}
    record.write_text(json.dumps(made, indent=1))
    return made


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("scenes", type=Path)
parser.add_argument("--weights", type=Path, required=True)
parser.add_argument("--out", type=Path, required=True)
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
lines = [run("tile", "tile", *sorted(given.scenes.glob("t[1-5].tif")), "--classes", given.scenes / "classes.toml", "--val-scenes", "t3")]
truth = (given.scenes / "t3.tif", "--labels", given.scenes / "t3_label.tif", "--out")
kinds = {"teacher": ("train-teacher", "--weights", given.weights), "ce": ("distill", "--method", "ce"), "kd": ("distill", "--method", "kd")}
made, scored = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
for seed in range(3):
    for kind, words in kinds.items():
        out = given.out / f"{kind}-{seed}.safetensors"
        teacher = () if kind == "teacher" else ("--teacher", given.out / f"teacher-{seed}.safetensors")
        made[kind].append(run(f"{kind}-{seed}", *words, *teacher, "--seed", seed, "--out", out))
        scored[kind].append(run(f"{kind}-{seed}-score", "evaluate", "--model", out, *truth, given.out / f"{kind}-{seed}"))
pixels = [sum(counts) for counts in scored["teacher"][0]["confusion"]]
majority = max(pixels) / sum(pixels)
print("| | mIoU | pixel accuracy | parameters | seconds | peak memory |\n|---|---|---|---|---|---|")
print(f"| majority class | {100 * majority / sum(count > 0 for count in pixels):.1f} | {100 * majority:.1f} | | | |")
for kind in kinds:
    cells = [f"{100 * mean(x[key] for x in scored[kind]):.1f} ± {100 * stdev(x[key] for x in scored[kind]):.1f}" for key in ("miou", "pixel_accuracy")]
    cost = f"{made[kind][0]['parameters'] / 1e6:.2f} M | {mean(x['wall'] for x in made[kind]):.0f} | {max(x['peak'] for x in made[kind]):.0f} MB"
    print(f"| {kind} | {' | '.join(cells)} | {cost} |")
print("\n".join(["", *(f"    {x['line']}" for x in [*lines, *(x[0] for kind in kinds for x in (made[kind], scored[kind]))])]))
