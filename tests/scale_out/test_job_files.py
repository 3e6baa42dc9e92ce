"""The job files in examples/jobs: each is what its system reads, and the command line in it does what the page says."""

import ast
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cases import OPTIONS
from harness import ended, make_world

from rsdistill.commands.merge import merge
from rsdistill.commands.predict import predict

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "examples" / "jobs"
PAGE = ROOT / "docs" / "how-to" / "scale-out.md"
WORDS = ("--tile", OPTIONS["tile"], "--margin", OPTIONS["margin"])
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'rsdistill[dev]'")


def job(name):
    (document,) = yaml.safe_load_all((JOBS / name).read_text())
    return document["spec"]


def words_of(spec, folder):
    """What the container is started with, its volume being ``folder``."""
    (container,) = spec["template"]["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] in {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    return [word.replace(mount["mountPath"], str(folder)) for word in container["args"]]


@pytest.fixture
def path_with(tmp_path, monkeypatch):
    """Put programs on the PATH; ``rsdistill`` is the one under test."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(name, text):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    put("rsdistill", f'exec {sys.executable} -m rsdistill "$@"')
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return put


def bash(name, *words, **variables):
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    command = ["bash", JOBS / name, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=240, check=False)


def test_every_job_file_is_named_on_the_page():
    page = PAGE.read_text()
    for path in JOBS.iterdir():
        assert f"examples/jobs/{path.name}" in page


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.sh")), ids=lambda path: path.name)
def test_what_slurm_reads_stands_before_the_first_command(path):
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    text = path.read_text()
    head, _, body = text.partition("\nset -euo pipefail\n")
    assert all(line.startswith("#") for line in head.splitlines())
    assert "#SBATCH" not in body
    options = re.findall(r"^#SBATCH (\S+)$", head, re.MULTILINE)
    assert len(options) == len(re.findall("SBATCH --", head))
    assert all(re.fullmatch(r"--[a-z-]+(=[\w:@-]+)?", option) for option in options)


def test_a_slurm_array_makes_the_shards_of_one_map(case, in_one_piece, path_with, folder):
    assert "#SBATCH --array=1-16\n" in (JOBS / "slurm-map.sh").read_text()
    assert "auto/${SHARDS:-16}" in (JOBS / "slurm-map.sh").read_text()
    words = (case.scene, folder / "shards" / "mask.tif", "--work", case.work, *WORDS)
    for number in (1, 2):
        run = bash("slurm-map.sh", *words, SHARDS=2, SLURM_ARRAY_TASK_ID=number, SLURM_ARRAY_TASK_MIN=1, SLURM_CPUS_PER_TASK=1)
        assert run.returncode == 0, run.stderr
        assert run.stdout == f"{folder}/shards/mask.{number}-of-2.tif\n"
    merge(folder / "shards", out=folder / "mask.tif")
    assert (folder / "mask.tif").read_bytes() == in_one_piece["core"][0][0]


def test_an_indexed_job_makes_the_shards_of_one_map(case, in_one_piece, folder, monkeypatch):
    spec = job("kubernetes-map.yaml")
    words = words_of(spec, folder)
    assert spec["completionMode"] == "Indexed"
    assert f"--shard=auto/{spec['completions']}" in words
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "else attempts are not counted by index"
    (folder / "work").mkdir(parents=True)
    (folder / "scene.tif").symlink_to(case.scene)
    (folder / "work" / "student.safetensors").symlink_to(case.work / "student.safetensors")
    for number in range(spec["completions"]):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(number))
        run = ended(*[word for word in words if not word.startswith("--threads")], "--threads", 1, *WORDS)
        assert run.code == 0, run.err
    run = ended(*words_of(job("kubernetes-merge.yaml"), folder))
    assert run.code == 0, run.err
    assert (folder / "maps" / "scene.gpkg").exists()
    made = (folder / "maps" / "scene.tif").read_bytes()
    predict(folder / "scene.tif", out=[folder / "whole.tif"], work=case.work, **OPTIONS)
    assert made == (folder / "whole.tif").read_bytes() == in_one_piece["core"][0][0]


def test_bad_input_has_one_attempt_in_an_indexed_job(folder):
    (rule, _) = job("kubernetes-map.yaml")["podFailurePolicy"]["rules"]
    run = ended("predict", folder / "gone.tif", "--out", folder / "m.tif")
    assert rule["action"] == "FailIndex"
    assert rule["onExitCodes"]["values"] == [run.code] == [2]


def test_workers_that_slurm_starts_for_dask_map_a_folder(case, in_one_piece, folder, monkeypatch):
    """dask-jobqueue's cluster is an ordinary one whose workers sbatch starts; here this machine does."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'rsdistill[dask]'")

    class Cluster(distributed.LocalCluster):
        def __init__(self, *, cores, processes, memory, walltime):
            assert (cores, memory[-2:], walltime.count(":")) == (processes, "GB", 2)
            super().__init__(n_workers=2, threads_per_worker=1, dashboard_address=None)

        def adapt(self, *, minimum_jobs, maximum_jobs):
            assert 0 < minimum_jobs <= maximum_jobs

    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=Cluster))
    monkeypatch.syspath_prepend(JOBS)
    import dask_slurm

    (folder / "scenes").mkdir(parents=True)
    (folder / "scenes" / "s.tif").symlink_to(case.scene)
    assert dask_slurm.main(folder / "scenes", folder / "masks", case.work) == 0
    predict(case.scene, out=[folder / "whole.tif"], work=case.work, threads=1)
    assert (folder / "masks" / "s.tif").read_bytes() == (folder / "whole.tif").read_bytes()


def test_the_script_for_dask_says_what_it_does():
    tree = ast.parse((JOBS / "dask_slurm.py").read_text())
    assert "python examples/jobs/dask_slurm.py" in ast.get_docstring(tree)


@pytest.mark.slow
def test_slurm_and_torchrun_train_together_and_go_on(path_with, tmp_path):
    """``srun`` starts its words once a node: here on one, whose two processes speak over gloo."""
    world = make_world(tmp_path / "world")
    path_with("srun", 'exec "$@"')
    path_with("torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    path_with("scontrol", "echo localhost; echo elsewhere")
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": 1, "SLURM_GPUS_ON_NODE": 2, "SLURM_JOB_ID": 7, "GLOO_SOCKET_IFNAME": "lo"}
    words = ("--work", world.work, "--arch", "linear", "--device", "cpu", "--batch", 4, "--steps", 2)
    run = bash("slurm-train.sh", *words, **slurm)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{world.work}/teacher.safetensors\n"
    assert "nothing to resume" in run.stderr
