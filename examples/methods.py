"""Compare every method on real scenes, with students from scratch and from encoder weights, as Markdown tables.

    python examples/methods.py SCENES --weights mobilenetv2.safetensors --out methods --page docs/benchmarks/methods.md

SCENES is a folder of scenes …t1.tif to …t5.tif with labels and classes.toml; t3 is left out of training and measured at the end of a run.
The teacher is an fpn of the same scenes. What has finished is not run again, so it may be stopped at any time.
"""

import argparse
import tomllib
from pathlib import Path

from measured import publish, run

METHODS = "ce,kd,skd,ifvd,cwd,mgsad,drd,idd,nfd,dist,cbd"
"""All but mgd, which reads unlabelled tiles: semi_supervised.py compares it."""
CACHED = "ce,kd,dist,cbd"
"""Those that a teacher's logits suffice for."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("scenes", type=Path, help="folder of scenes with labels and classes.toml")
parser.add_argument("--weights", type=Path, required=True, help="of MobileNetV2, as train-teacher takes them")
parser.add_argument("--out", type=Path, default=Path("methods"), help="folder of all that is made; run again with it to go on")
parser.add_argument("--page", type=Path, help="Markdown page to write the tables into, between its marks")
parser.add_argument("--part", choices=("scratch", "weights", "cached", "all"), default="all", help="which students are trained")
for name, number in (("--teacher-steps", 400), ("--steps", 150), ("--steps-from-weights", 100), ("--seeds", 3)):
    parser.add_argument(name, type=int, default=number)
parser.add_argument("--threads", type=int, default=2, help="threads of the network")
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
scenes = sorted(given.scenes.glob("*t[1-5].tif"))
tiled = run(given.out, "tile", "tile", *scenes, "--classes", given.scenes / "classes.toml", "--val-scenes", scenes[2].stem)
how, teacher = ("--precision", "bf16", "--threads", given.threads), given.out / "fpn.safetensors"
budget = ("--steps", given.teacher_steps, "--validate-every", given.teacher_steps)
words = ("--arch", "fpn", "--encoder", "mobilenetv2_100", "--weights", given.weights)
done = [tiled, run(given.out, "fpn", "train-teacher", *words, *budget, *how, "--out", teacher)]
small, asked = ("--student", "small", "--lr", 2e-3), ("--cache-teacher", "--teacher-views", 8, "--budget", "seconds")
base = ("--student", "base", "--weights", given.weights, "--batch", 1)
students = {
    "scratch": ("Students from scratch", METHODS, given.steps, small),
    "weights": ("Students from encoder weights", METHODS, given.steps_from_weights, base),
    "cached": ("Students from scratch, a teacher asked eight times and kept", CACHED, given.steps, (*small, *asked)),
}
parts = [f"The teacher's mIoU is {100 * done[1]['miou']:.1f} %, its pixel accuracy {100 * done[1]['pixel_accuracy']:.1f} %."]
for name, (title, methods, steps, words) in students.items():
    if given.part not in ("all", name):
        continue
    budget = ["--steps", steps, "--validate-every", steps]
    if name == "cached":  # the wall-clock that the others had
        budget += ["--max-seconds", tomllib.loads((given.out / "scratch" / "comparison.run.toml").read_text())["max_seconds"]]
    compared = ("compare", "--methods", methods, "--class-weights", "balanced", "--teacher", teacher, *words, *budget)
    done.append(run(given.out, f"compare-{name}", *compared, "--seeds", given.seeds, *how, "--out", given.out / name))
    parts += [f"## {title}", (given.out / name / "comparison.md").read_text().strip()]
commands = "\n".join(one["line"] for one in done)
for path in (given.scenes, given.weights, given.out):
    commands = commands.replace(f"{path.parent}/", "")  # where things lie on this machine is nobody else's business
parts += ["```bash\n" + commands + "\n```"]
if given.page:
    publish(given.page, "methods", "\n\n".join(parts))
print("\n\n".join(parts))
