"""Several processes are one run: the same result, one voice, and an end for all when one of them ends."""

import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rsdistill.commands.distill import distill
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.errors import ConfigError, DeviceError
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.training import pieces, ranks, run
from rsdistill.training.prepare import leads
from rsdistill.training.settings import LaunchConfig

QUICK = {"batch": 4, "validate_every": 3, "device": "cpu"}
SCRIPT = """
import os, signal, sys
from rsdistill.cli import main
from rsdistill.errors import DiskError
from rsdistill.training.loop import Fit

RANK = int(os.environ.get("LOCAL_RANK", 0))
original = Fit._train_step

def disturbed(self, raws):
    {fault}
    return original(self, raws)

Fit._train_step = disturbed
if __name__ == "__main__":
    main()
"""
FROZEN = """
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
_BatchNorm.train = lambda self, mode=True: nn.Module.train(self, False)
"""


def command(name, *start, **options):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (QUICK | options).items()]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LOCAL_", "MASTER_", "TORCH"))}
    ended = subprocess.run(
        [sys.executable, *map(str, start), name, "--overwrite", *flags], capture_output=True, text=True, timeout=280, env=environment
    )
    ended.said = [line for line in ended.stderr.splitlines() if line.startswith("rsdistill:")]
    return ended


def furthest(first, second):
    """Largest difference of any weight of two models."""
    weights = load_file(first), load_file(second)
    return max(float((weights[0][name].float() - weights[1][name].float()).abs().max()) for name in weights[0])


@pytest.fixture(scope="module")
def teacher(tiles, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    train_teacher(tiles=tiles, out=out, arch="linear", steps=8, lr=0.05, **QUICK)
    return out


def test_two_processes_do_what_one_does_and_speak_as_one(tiles, tmp_path):
    """Pixels without a label lie unevenly in this scene, so an unweighted mean over processes would miss by 1e-3."""
    options = {"arch": "linear", "lr": 0.05, "steps": 3}
    train_teacher(tiles=tiles, out=tmp_path / "one.safetensors", **options, **QUICK)
    ended = command("train-teacher", "-m", "rsdistill", tiles=tiles, out=tmp_path / "two.safetensors", devices=2, **options)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(tmp_path / "two.safetensors")]
    assert "Warning" not in ended.stderr
    assert ended.stderr.count("M parameters") == 1
    assert furthest(tmp_path / "one.safetensors", tmp_path / "two.safetensors") < 1e-6
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_twenty_steps_of_a_network_with_frozen_norms_agree(tiles, tmp_path, teacher):
    script = tmp_path / "frozen.py"
    script.write_text(FROZEN + SCRIPT.format(fault="pass"))
    options = {"tiles": tiles, "teacher": teacher, "method": "ce", "student": "tiny", "steps": 20}
    for devices in (1, 2):
        ended = command("distill", script, out=tmp_path / f"{devices}.safetensors", devices=devices, **options)
        assert ended.returncode == 0, ended.stderr
    assert furthest(tmp_path / "1.last.safetensors", tmp_path / "2.last.safetensors") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"method": "skd"}, {"method": "mgd", "labels_fraction": 0.5}, {"method": "kd", "cache_teacher": None}])
def test_critics_unlabelled_tiles_and_caches_work_in_two_processes(tiles, tmp_path, teacher, options):
    options = {key: value for key, value in options.items() if value is not None}
    cached = ["--cache-teacher"] if options == {"method": "kd"} else []
    script = tmp_path / "run.py"
    script.write_text("import sys\nfrom rsdistill.cli import main\nsys.argv += " + repr(cached) + "\nmain()\n")
    ended = command("distill", script, tiles=tiles, work=tmp_path, teacher=teacher, student="tiny", steps=3, devices=2, **options)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_a_run_that_two_processes_began_is_ended_by_one(tiles, tmp_path):
    """SIGTERM reaches rank 0 in its fifth step: both stop after it, the state is whole, and one process goes on to the same weights."""
    options = {"tiles": tiles, "arch": "linear", "lr": 0.05, "steps": 12}
    script = tmp_path / "cut.py"
    script.write_text(SCRIPT.format(fault="if RANK == 0 and self.step == 4: os.kill(os.getpid(), signal.SIGTERM)"))
    cut = command("train-teacher", script, out=tmp_path / "cut.safetensors", devices=2, **options)
    assert cut.returncode == 143, cut.stderr
    assert len(cut.said) == 1
    assert torch.load(tmp_path / "cut.state.pt", weights_only=True)["step"] == 5
    train_teacher(out=tmp_path / "cut.safetensors", resume=True, **options, **QUICK)
    train_teacher(out=tmp_path / "whole.safetensors", **options, **QUICK)
    assert furthest(tmp_path / "cut.last.safetensors", tmp_path / "whole.last.safetensors") < 1e-5


SHARE = (
    "from rsdistill.training.pieces import local; own = [*self.objective.parameters()]; "
    "print(f'share {{sum(local(one).numel() for one in own) / sum(one.numel() for one in own):.2f}}', file=sys.stderr); "
    "RANK == 0 and self.step == 2 and {cut} and os.kill(os.getpid(), signal.SIGTERM)"
)


@pytest.mark.slow
def test_a_network_in_pieces_learns_what_a_whole_one_does_and_each_goes_on_with_the_other_s_state(tiles, tmp_path):
    """SGD, since Adam's quotients of small numbers make rounding large; the encoder has blocks that are gathered one by one."""
    whole, cut, resumed = (tmp_path / f"{name}.py" for name in ("whole", "cut", "resumed"))
    whole.write_text(SCRIPT.format(fault=SHARE.format(cut=False)))
    cut.write_text(SCRIPT.format(fault=SHARE.format(cut=True)))
    resumed.write_text("import sys\nsys.argv.append('--resume')\n" + whole.read_text())
    options = {"tiles": tiles, "arch": "fpn", "encoder": "resnet10t", "optimizer": "sgd", "lr": 0.01, "steps": 5, "devices": 2}
    for strategy, share in (("ddp", 1.0), ("fsdp", 0.5)):
        ended = command("train-teacher", whole, out=tmp_path / f"{strategy}.safetensors", strategy=strategy, **options)
        assert ended.returncode == 0, ended.stderr
        shares = [float(found) for found in re.findall(r"share (\d\.\d\d)", ended.stderr)]
        assert len(shares) == 2 * 5
        assert shares == pytest.approx([share] * 10, abs=0.02)
    for before, after in (("ddp", "fsdp"), ("fsdp", "ddp")):
        out = tmp_path / f"{before}-{after}.safetensors"
        ended = command("train-teacher", cut, out=out, strategy=before, **options)
        assert ended.returncode == 143, ended.stderr
        ended = command("train-teacher", resumed, out=out, strategy=after, **options)
        assert ended.returncode == 0, ended.stderr
        assert "nothing to resume" not in ended.stderr
    for other in ("fsdp", "ddp-fsdp", "fsdp-ddp"):
        assert furthest(tmp_path / "ddp.last.safetensors", tmp_path / f"{other}.last.safetensors") < 1e-5


def test_large_blocks_are_spread_by_themselves_and_come_back_whole():
    """In a group of one process, a piece is all of it; what is checked is which blocks are units, and that values go to and fro."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        inner = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.ReLU(), torch.nn.Linear(8, 8))
        outer = torch.nn.Sequential(inner, torch.nn.ModuleDict({"own": torch.nn.Sequential(torch.nn.Linear(400, 300))}))
        before = {name: value.clone() for name, value in outer.state_dict().items()}
        pieces.spread(outer, mesh)
        units = {name for name, each in outer.named_modules() if isinstance(each, torch.distributed.fsdp.FSDPModule)}
        assert units == {"", "0.0", "1.own.0"}
        found = pieces.whole({"states": [outer.state_dict()], "step": 3})
        assert found["step"] == 3
        assert all(torch.equal(found["states"][0][name], value) for name, value in before.items())
        weight = outer[0][0].weight
        assert torch.equal(pieces.piece(before["0.0.weight"], weight).to_local(), weight.to_local())
        assert pieces.piece(torch.tensor(4.0), weight) == 4
    finally:
        torch.distributed.destroy_process_group()


def test_half_precision_is_not_scaled_in_pieces(tiles):
    with pytest.raises(ConfigError, match="--strategy fsdp does not go with --precision fp16"):
        train_teacher(tiles=tiles, strategy="fsdp", precision="fp16", device="cpu", devices=2)


FAULTS = {
    "refuses": ("if RANK == 1 and self.step == 2: raise DiskError('the disk of rank 1 is gone', hint='mount it')", 3, "the disk of rank 1"),
    "is killed": ("if RANK == 1 and self.step == 2: os.kill(os.getpid(), signal.SIGKILL)", 3, "another process of this run ended"),
    "all refuse": ("if self.step == 2: raise DiskError('no disk anywhere', hint='mount it')", 3, "no disk anywhere"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code", "says"), FAULTS.values(), ids=FAULTS)
def test_when_one_ends_all_end_with_one_line(tiles, tmp_path, fault, code, says):
    script = tmp_path / "fault.py"
    script.write_text(SCRIPT.format(fault=fault))
    began = time.monotonic()
    ended = command("train-teacher", script, tiles=tiles, out=tmp_path / "t.safetensors", arch="linear", steps=6, devices=2)
    assert time.monotonic() - began < 60
    assert ended.returncode == code, ended.stderr
    assert len(ended.said) == 1, ended.stderr
    assert says in ended.said[0]
    assert not (tmp_path / "t.safetensors").exists()


@pytest.mark.slow
def test_torchrun_starts_the_processes_too(tiles, tmp_path):
    options = {"tiles": tiles, "arch": "linear", "lr": 0.05, "steps": 3}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rsdistill")
    ended = command("train-teacher", *torchrun, out=tmp_path / "two.safetensors", **options)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(tmp_path / "two.safetensors")]
    train_teacher(out=tmp_path / "one.safetensors", **options, **QUICK)
    assert furthest(tmp_path / "one.safetensors", tmp_path / "two.safetensors") < 1e-6


def test_devices_that_cannot_be_are_refused(tiles, tmp_path, monkeypatch):
    with pytest.raises(DeviceError):
        train_teacher(tiles=tiles, work=tmp_path, arch="linear", device="cuda", devices=64)
    monkeypatch.setattr(ranks._State, "launched", True)
    with pytest.raises(ConfigError, match="on several devices once"):
        train_teacher(tiles=tiles, work=tmp_path, arch="linear", device="cpu", devices=2)


@pytest.mark.parametrize(("with_context", "says"), [(True, "4 contexts"), (False, "8 tiles")])
def test_a_step_that_does_not_divide_is_refused_with_the_flag_that_helps(tiles, with_context, says):
    three = SimpleNamespace(world_size=3, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=f"{says} does not divide among 3") as caught:
        run.source(LaunchConfig.of(batch=8), load_tile_set(tiles), three, with_context=with_context)
    assert caught.value.hint.startswith("use --contexts 3" if with_context else "use --batch 3")


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, True), ({"RANK": "0", "LOCAL_RANK": "0"}, True), ({"RANK": "8", "LOCAL_RANK": "0"}, False), ({"LOCAL_RANK": "1"}, False)],
)
def test_the_first_process_knows_itself_before_torch_does(monkeypatch, environment, first):
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert leads(LaunchConfig.of(devices=2)) is first
    assert leads(LaunchConfig.of()) is True


def test_one_process_needs_no_other(tiles, tmp_path, teacher):
    assert distill(tiles=tiles, work=tmp_path, teacher=(teacher,), student="linear", steps=1, **QUICK).data["steps"] == 1
    assert not torch.distributed.is_initialized()
