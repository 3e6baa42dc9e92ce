"""Measure what unlabelled tiles are worth: ``ce``, ``kd`` and ``mgd`` with 1/8 and 1/16 of the labels, as a Markdown table.

    python examples/semi_supervised.py SCENES --weights mobilenetv2.safetensors --out semi-supervised --page docs/benchmarks/methods.md

SCENES is a folder of scenes …t1.tif to …t5.tif with labels and classes.toml; t3 validates. Three seeds each. The teachers, a ginet as the
wide one and an fpn as the deep one, see the same share of the labels as their students. What has finished is not run again.
"""

import argparse
from pathlib import Path

from measured import publish, run

TEACHERS = {"ginet": (), "fpn": ("--arch", "fpn", "--encoder", "mobilenetv2_100")}

parser = argparse.ArgumentParser()
for name in ("scenes", "--weights", "--out"):
    parser.add_argument(name, type=Path)
for name, steps in (("--teacher-steps", 150), ("--steps", 150)):
    parser.add_argument(name, type=int, default=steps)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--page", type=Path, help="Markdown page to write the table into, between its marks")
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
scenes = sorted(given.scenes.glob("*t[1-5].tif"))
done = [run(given.out, "tile", "tile", *scenes, "--classes", given.scenes / "classes.toml", "--val-scenes", scenes[2].stem)]
how = ("--precision", "bf16", "--threads", given.threads)
table = ["| labels | tiles | network | mIoU, % | to `ce`, points | ms a step |", "|---|---|---|---|---|---|"]
for part in (8, 16):
    share, teachers = ("--labels-fraction", f"1/{part}"), []
    budget = ("--steps", given.teacher_steps, "--validate-every", given.teacher_steps)
    for name, words in TEACHERS.items():
        teachers += ["--teacher", given.out / f"{name}-{part}.safetensors"]
        options = (*words, *share, *how, *budget, "--weights", given.weights, "--out", teachers[-1])
        done.append(run(given.out, f"{name}-{part}", "train-teacher", *options))
        figures = f"{100 * done[-1]['miou']:.1f} | | {1000 * done[-1]['seconds'] / done[-1]['steps']:.0f}"
        table.append(f"| 1/{part} | {round(done[0]['tiles']['train'] / part)} | {name}, a teacher | {figures} |")
    budget = ("--steps", given.steps, "--validate-every", given.steps, "--budget", "steps", "--lr", 2e-3)
    out = given.out / f"students-{part}"
    done.append(run(given.out, out.name, "compare", "--methods", "ce,kd,mgd", *teachers, *share, *how, *budget, "--out", out))
    for row in done[-1]["budgets"]["steps"]:
        difference = "–" if row["method"] == "ce" else f"{100 * row['to_ce']:+.1f} ± {100 * row['to_ce_interval']:.1f}"
        tiles = round(done[0]["tiles"]["train"] / part)
        quality = f"{100 * row['miou']:.1f} ± {100 * row['miou_sd']:.1f} | {difference}"
        table.append(f"| 1/{part} | {tiles} | `{row['method']}` | {quality} | {row['ms_per_step']:.0f} |")
commands = "\n".join(one["line"] for one in done)
for path in (given.scenes, given.weights, given.out):
    commands = commands.replace(f"{path.parent}/", "")  # where things lie on this machine is nobody else's business
text = "\n".join([*table, "", "```bash", commands, "```"])
if given.page:
    publish(given.page, "semi-supervised", text)
print(text)
