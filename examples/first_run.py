"""Measure a first run on real scenes: teacher, ``ce`` and ``kd`` student of equal budget, three seeds each, as a Markdown table.

    python examples/first_run.py SCENES --weights mobilenetv2.safetensors --out first-run

SCENES is a folder of scenes …t1.tif to …t5.tif with labels and classes.toml; t3 validates. Every command runs in a process of its own, so
its seconds and its peak memory are its own. What has finished is not run again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from time import monotonic


def run(name: str, *words: object) -> dict:
    """Run one command, or read what it gave before: its JSON, its command line, its seconds and its peak memory in MB."""
    record = given.out / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text())
    line = ["rsdistill", *map(str, words), "--work", str(given.out / "work")]
    start = monotonic()
    process = subprocess.Popen([sys.executable, "-m", *line, "--json", "-q"], stdout=subprocess.PIPE)
    printed, (_, status, usage) = process.stdout.read(), os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {shlex.join(line)}")
    made = json.loads(printed) | {"line": shlex.join(line), "wall": monotonic() - start, "peak": usage.ru_maxrss / 1024}
    record.write_text(json.dumps(made, indent=1))
    return made


parser = argparse.ArgumentParser()
for name in ("scenes", "--weights", "--out"):
    parser.add_argument(name, type=Path)
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
scenes = sorted(given.scenes.glob("*t[1-5].tif"))
done = [run("tile", "tile", *scenes, "--classes", given.scenes / "classes.toml", "--val-scenes", scenes[2].stem)]
kinds = {"teacher": ("train-teacher", "--weights", given.weights), "ce": ("distill", "--method", "ce"), "kd": ("distill", "--method", "kd")}
made, scored = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
for seed in range(3):
    for kind, words in kinds.items():
        out = given.out / f"{kind}-{seed}.safetensors"
        teacher = () if kind == "teacher" else ("--teacher", given.out / f"teacher-{seed}.safetensors")
        made[kind].append(run(f"{kind}-{seed}", *words, *teacher, "--seed", seed, "--out", out))
        scored[kind].append(run(f"{kind}-{seed}-score", "evaluate", "--model", out, scenes[2], "--out", given.out / f"{kind}-{seed}"))
pixels = [sum(counts) for counts in scored["teacher"][0]["confusion"]]
share = 100 * max(pixels) / sum(pixels)
print("| | mIoU, % | pixel accuracy, % | parameters | seconds | peak MB |\n|---|---|---|---|---|---|")
print(f"| majority class | {share / sum(count > 0 for count in pixels):.1f} | {share:.1f} | | | |")
for kind in kinds:
    done += [made[kind][0], scored[kind][0]]
    values = [[100 * one[key] for one in scored[kind]] for key in ("miou", "pixel_accuracy")]
    cells = [kind, *(f"{mean(one):.1f} ± {stdev(one):.1f}" for one in values), f"{made[kind][0]['parameters'] / 1e6:.2f} M"]
    print("|", *(f"{cell} |" for cell in cells), f"{mean(x['wall'] for x in made[kind]):.0f} | {max(x['peak'] for x in made[kind]):.0f} |")
print("", *(f"    {one['line']}" for one in done), sep="\n")
