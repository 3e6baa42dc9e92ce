"""A folder of scenes on Dask workers that Slurm starts and stops as there is work: python examples/jobs/dask_slurm.py scenes/ masks/."""

import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

import rsdistill


def main(scenes: Path, masks: Path, workspace: Path = Path("work")) -> int:
    """Map all scenes in a folder; return how many failed."""
    # one process a core, with one thread: a network on a small tile gains less from threads than from a neighbour
    with SLURMCluster(cores=16, processes=16, memory="48GB", walltime="04:00:00") as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=16)
        made = rsdistill.predict(scenes, out=[masks], work=workspace, engine="dask", scheduler=cluster.scheduler_address, threads=1)
    for failure in made.failures:
        print("failed:", failure, file=sys.stderr)
    return len(made.failures)


if __name__ == "__main__":
    sys.exit(6 if main(*map(Path, sys.argv[1:])) else 0)
