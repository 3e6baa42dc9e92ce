"""Measure what each part of the teacher is worth under equal wall-clock on real scenes, three seeds each, as a Markdown table.

    python examples/ablation.py SCENES --weights mobilenetv2.safetensors --out ablation --seconds 120

SCENES is a folder of scenes …t1.tif to …t5.tif with labels and classes.toml; t3 validates. What has finished is not run again.
"""

import argparse
from pathlib import Path
from statistics import mean

from measured import percent, run

PARTS = {
    "local": ("--arch", "local"),
    "+ GGN": ("--lad", "none", "--no-fusion"),
    "+ GGN + LAD": ("--no-fusion",),
    "+ GGN + LAD + fusion": (),
}

parser = argparse.ArgumentParser()
for name in ("scenes", "--weights", "--out"):
    parser.add_argument(name, type=Path)
parser.add_argument("--seconds", type=float, default=120)
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
scenes = sorted(given.scenes.glob("*t[1-5].tif"))
tiled = run(given.out, "tile", "tile", *scenes, "--classes", given.scenes / "classes.toml", "--val-scenes", scenes[2].stem)
budget = ("--steps", 100_000, "--max-seconds", given.seconds, "--weights", given.weights)
made, scored = {part: [] for part in PARTS}, {part: [] for part in PARTS}
for seed in range(3):
    for number, (part, words) in enumerate(PARTS.items()):
        name = f"{number}-{seed}"
        out = given.out / f"{name}.safetensors"
        every = ("--validate-every", 100_000)  # once, at the end: nothing is chosen on the scene that is measured
        made[part].append(run(given.out, name, "train-teacher", *words, *budget, *every, "--seed", seed, "--out", out))
        scored[part].append(run(given.out, f"{name}-score", "evaluate", "--model", out, scenes[2], "--out", given.out / name))

print("| teacher | mIoU, % | pixel accuracy, % | boundary IoU, % | steps | ms a step | peak MB |\n|---|---|---|---|---|---|---|")
for part in PARTS:
    quality = " | ".join(percent(scored[part], key) for key in ("miou", "pixel_accuracy", "boundary_iou"))
    speed = f"{mean(one['steps'] for one in made[part]):.0f} | {mean(1000 * one['seconds'] / one['steps'] for one in made[part]):.0f}"
    print(f"| {part} | {quality} | {speed} | {max(one['peak'] for one in made[part]):.0f} |")
print("", *(f"    {one['line']}" for one in [tiled, *(x[0] for part in PARTS for x in (made[part], scored[part]))]), sep="\n")
