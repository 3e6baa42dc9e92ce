"""Measure what each part of the teacher is worth under equal wall-clock on real scenes, as a Markdown table.

    python examples/ablation.py SCENES --weights mobilenetv2.safetensors --out ablation --seconds 120 --page docs/benchmarks/ginet.md

SCENES is a folder of scenes …t1.tif to …t5.tif with labels and classes.toml; t3 is left out of training and measured once, at the end of
each run. Parts take turns within each seed, so that a machine that slows down slows all of them. What has finished is not run again.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from statistics import mean

from measured import percent, publish, run

PARTS = {
    "local": ("--arch", "local"),
    "+ GGN": ("--lad", "none", "--no-fusion"),
    "+ GGN + LAD": ("--no-fusion",),
    "+ GGN + LAD + fusion": (),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("scenes", type=Path, help="folder of scenes with labels and classes.toml")
parser.add_argument("--weights", default="none", help="of the encoders, as train-teacher takes them")
parser.add_argument("--out", type=Path, default=Path("ablation"), help="folder of all that is made; run again with it to go on")
parser.add_argument("--page", type=Path, help="Markdown page to write the table into, between its marks")
parser.add_argument("--seconds", type=float, default=120, help="training time of each run")
parser.add_argument("--seeds", type=int, default=3, help="runs of each part")
parser.add_argument("--threads", type=int, default=2, help="threads of the network")
parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="of training; what is measured is always float32")
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
scenes = sorted(given.scenes.glob("*t[1-5].tif"))
tiled = run(given.out, "tile", "tile", *scenes, "--classes", given.scenes / "classes.toml", "--val-scenes", scenes[2].stem)
threads = ("--threads", given.threads)  # below: validated once, at the end, so nothing is chosen on the scene that is measured
budget = ("--steps", 100_000, "--max-seconds", given.seconds, "--validate-every", 100_000)
how = (*budget, *threads, "--precision", given.precision, "--weights", given.weights)
made, scored = {part: [] for part in PARTS}, {part: [] for part in PARTS}
for seed, (number, (part, words)) in product(range(given.seeds), enumerate(PARTS.items())):
    name, out = f"{number}-{seed}", given.out / f"{number}-{seed}.safetensors"
    made[part].append(run(given.out, name, "train-teacher", *words, *how, "--seed", seed, "--out", out))
    scored[part].append(run(given.out, f"{name}-score", "evaluate", "--model", out, scenes[2], *threads, "--out", given.out / name))
    print(f"{part}, seed {seed}: mIoU {percent(scored[part][-1:], 'miou')} %", file=sys.stderr, flush=True)

lines = [f"## What each part is worth in {given.seconds:.0f} s of training, {given.seeds} seeds, {given.precision}, mean ± sd", ""]
lines += ["| teacher | mIoU, % | pixel accuracy, % | boundary IoU, % | steps | ms a step | peak MB |", "|---|---|---|---|---|---|---|"]
for part in PARTS:
    quality = " | ".join(percent(scored[part], key) for key in ("miou", "pixel_accuracy", "boundary_iou"))
    speed = f"{mean(one['steps'] for one in made[part]):.0f} | {mean(1000 * one['seconds'] / one['steps'] for one in made[part]):.0f}"
    lines.append(f"| {part} | {quality} | {speed} | {max(one['peak'] for one in made[part]):.0f} |")
first = [tiled, *(runs[part][0] for part in PARTS for runs in (made, scored))]
commands = "\n".join(one["line"] for one in first)
for path in (given.scenes, Path(given.weights), given.out):
    commands = commands.replace(f"{path.parent}/", "")  # where things lie on this machine is nobody else's business
lines += ["", "```bash", commands, "```"]
if given.page:
    publish(given.page, "ablation", "\n".join(lines))
print("\n".join(lines))
