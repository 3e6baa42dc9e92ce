"""What mapping costs on one core of this machine, measured for examples/cost.py: python examples/rates.py docs/benchmarks/cost.json."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from timeit import timeit

import torch

from rsdistill.commands.merge import merge
from rsdistill.commands.predict import predict
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.inference.cost import SIDE, cost
from rsdistill.models import ModelCard, build_network, save_model

PARTS = 16


def rates(folder: Path, arch: str, side: int) -> dict[str, float | str]:
    """Return processor seconds, which other work on the machine hardly changes, and bytes; for a student and a scene without nodata."""
    scene, tiny = (write_land_cover(folder / f"{size}", size=size, seed=1).scene for size in (side, 256))
    classes = [{"id": k + 1, "name": f"class {k}", "color": "#808080"} for k in range(7)]
    card = ModelCard(arch=arch, classes=classes, bands=(1, 2, 3), mean=(100.0,) * 3, std=(50.0,) * 3)
    torch.manual_seed(0)  # what the map looks like, and so its bytes, depends on the weights
    network, folder = build_network(arch, {}, bands=3, classes=7).eval(), folder / arch
    save_model(folder.with_suffix(".safetensors"), network, card)
    how = {"model": folder.with_suffix(".safetensors"), "threads": 1, "device": "cpu"}
    predict(tiny, out=[folder / "warm.tif"], **how)  # after which everything is loaded
    once = {"timer": process_time, "number": 1}
    mapped = timeit(lambda: predict(scene, out=[folder / "one" / "m.tif"], shard="1/1", **how), **once)
    divided = timeit(lambda: [predict(scene, out=[folder / "m.tif"], shard=f"{i + 1}/{PARTS}", **how) for i in range(PARTS)], **once)
    merged, pixels = timeit(lambda: merge(folder), **once), side * side
    (facts,) = predict(scene, out=[folder / "again.tif"], **how).data["scenes"]
    return {
        "student": arch,
        "start": started("predict", tiny, "--out", folder / "start.tif", "--model", how["model"], "--threads", 1, "-q"),
        "shard": max(0.0, (divided - mapped) / (PARTS - 1)),
        "pixel": mapped / pixels,
        "merge": merged / pixels,
        "network_share": facts["network_seconds"] / facts["seconds"],
        "operations": 2e9 * cost(network, 3)["gmacs"] / SIDE**2,
        "bytes": ((folder / "m.tif").stat().st_size + (folder / "one" / "m.1-of-1.tif").stat().st_size) / pixels,
    }


def started(*words: object) -> float:
    """Return the processor seconds of a process that maps next to nothing."""
    process = subprocess.Popen([sys.executable, "-m", "rsdistill", *map(str, words)], stdout=subprocess.DEVNULL)
    _, process.returncode, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime if process.returncode == 0 else sys.exit("rsdistill predict failed")


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        found = [rates(Path(place), arch, 4096) for arch in ("tiny", "small", "base")]
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
