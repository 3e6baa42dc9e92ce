"""Measure a first run on real scenes: teacher, ``ce`` and ``kd`` student of equal budget, three seeds each, as a Markdown table.

    python examples/first_run.py SCENES --weights mobilenetv2.safetensors --out first-run

SCENES is a folder of scenes …t1.tif to …t5.tif with labels and classes.toml; t3 validates. What has finished is not run again.
"""

import argparse
from pathlib import Path
from statistics import mean

from measured import percent, run

parser = argparse.ArgumentParser()
for name in ("scenes", "--weights", "--out"):
    parser.add_argument(name, type=Path)
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
scenes = sorted(given.scenes.glob("*t[1-5].tif"))
tiled = run(given.out, "tile", "tile", *scenes, "--classes", given.scenes / "classes.toml", "--val-scenes", scenes[2].stem)
kinds = {"teacher": ("train-teacher", "--weights", given.weights), "ce": ("distill", "--method", "ce"), "kd": ("distill", "--method", "kd")}
made, scored = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
for seed in range(3):
    for kind, words in kinds.items():
        name = f"{kind}-{seed}"
        out = given.out / f"{name}.safetensors"
        teacher = () if kind == "teacher" else ("--teacher", given.out / f"teacher-{seed}.safetensors")
        made[kind].append(run(given.out, name, *words, *teacher, "--seed", seed, "--out", out))
        scored[kind].append(run(given.out, f"{name}-score", "evaluate", "--model", out, scenes[2], "--out", given.out / name))

pixels = [sum(counts) for counts in scored["teacher"][0]["confusion"]]
share = 100 * max(pixels) / sum(pixels)
print("| | mIoU, % | pixel accuracy, % | parameters | seconds | peak MB |\n|---|---|---|---|---|---|")
print(f"| majority class | {share / sum(count > 0 for count in pixels):.1f} | {share:.1f} | | | |")
for kind in kinds:
    quality = " | ".join(percent(scored[kind], key) for key in ("miou", "pixel_accuracy"))
    cost = f"{mean(one['wall'] for one in made[kind]):.0f} | {max(one['peak'] for one in made[kind]):.0f}"
    print(f"| {kind} | {quality} | {made[kind][0]['parameters'] / 1e6:.2f} M | {cost} |")
print("", *(f"    {one['line']}" for one in [tiled, *(x[0] for kind in kinds for x in (made[kind], scored[kind]))]), sep="\n")
