"""The processes of one run, on Lightning Fabric: how they start, who speaks and writes, and how all end when one fails.

One process a device, each with the same command line: Fabric starts the others on this machine, or finds itself started by torchrun or
Slurm. The first one, rank 0, validates, logs, saves and writes; the others compute their share of every batch and end with training.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from rsdistill.data.dataset import Share
from rsdistill.errors import ConfigError, DeviceError, MachineError
from rsdistill.reporting import SILENT, Progress
from rsdistill.training.pieces import spread
from rsdistill.training.settings import LaunchConfig

SILENCE = timedelta(minutes=10)
"""Longest time that a process waits for another inside a step; validation and caches, which rank 0 makes alone, are not bounded."""
GRACE = 20.0
"""Seconds that a process which failed first has to say so."""
LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What Fabric leaves in the environment when it starts processes."""
FAILED, CODE = "rsdistill/failed", "rsdistill/code"


@contextmanager
def together(config: LaunchConfig, *, sharded: bool = False) -> Iterator[Fabric]:
    """Yield Fabric on the devices of ``config``, and end all processes of the run when one of them fails.

    With ``sharded``, several devices hold the network in pieces, else each of them holds all of it. The first process to fail raises its
    error; the others leave silently with its exit code, whatever became of them by its end.

    Raises:
        MachineError: another process ended without a word.
    """
    fabric = fabric_for(config, sharded=sharded)
    if fabric.world_size == 1:
        yield fabric
        return
    if not fabric.is_global_zero:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # rank 0 hears them, and tells the others after the step
    try:
        yield fabric
    except SystemExit:
        raise
    except BaseException as error:
        lost = _lost(error)
        code = _told_before(MachineError.exit_code if lost else getattr(error, "exit_code", 1))
        _end(fabric, 0 if code is None else GRACE)
        if code is not None:
            sys.exit(code)
        if lost:
            hint = "--resume goes on from the last saved state; was it out of memory?"
            raise MachineError("another process of this run ended or fell silent", hint=hint) from error
        raise
    _end(fabric, None)
    distributed.destroy_process_group()


def fabric_for(config: LaunchConfig, *, sharded: bool = False) -> Fabric:
    """Return Lightning Fabric on the devices and in the precision of ``config``, launched, with bounded threads.

    Raises:
        ConfigError: a precision that the device lacks, or processes that cannot be started from here.
        DeviceError: the device does not exist here.
    """
    kind, _, number = config.device.partition(":")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if cuda else "mps" if mps else "cpu"
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps) or (number and int(number) >= torch.cuda.device_count()):
        raise DeviceError(f"device '{config.device}' is not there", hint="use --device cpu or auto")
    if kind == "cpu" and config.precision == "fp16":  # for which Fabric would take bf16, with a warning that nobody sees
        raise ConfigError("--precision fp16 needs an accelerator", hint="use bf16 or float32 on the processor")
    devices, nodes = _asked(config)
    precision: Any = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[config.precision]
    if devices * nodes == 1:
        fabric = Fabric(accelerator=kind, devices=[int(number)] if number else 1, precision=precision)
    else:
        fabric = _launched(config, kind, devices, nodes, precision, _strategy(devices * nodes, sharded=sharded))
    if config.threads:
        torch.set_num_threads(config.threads)
    return fabric


def _asked(config: LaunchConfig) -> tuple[int, int]:
    """Return (devices of each machine, machines): those of torchrun where it started this process."""
    if distributed.is_torchelastic_launched():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    return config.devices, config.nodes


def _strategy(devices: int, *, sharded: bool) -> Strategy:
    if sharded:
        return ModelParallelStrategy(lambda module, mesh: spread(module, mesh["data_parallel"]), devices, 1, timeout=SILENCE)
    # heads that no term reads have no gradient: DDP must look for them
    return DDPStrategy(timeout=SILENCE, find_unused_parameters=True)


def _launched(config: LaunchConfig, kind: str, devices: int, nodes: int, precision: Any, strategy: Strategy) -> Fabric:
    if kind == "mps" or ":" in config.device:
        raise ConfigError(f"--devices {devices} does not go with --device {config.device}", hint="use --device cuda, or cpu")
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise DeviceError(f"{devices} devices were asked for and {torch.cuda.device_count()} are there", hint="use fewer --devices")
    if distributed.is_initialized() or _State.launched:
        raise ConfigError("one process can train on several devices once", hint="run each training as a command of its own")
    _State.launched = True
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot start {devices * nodes} processes: {error}", hint="see docs/how-to/several-devices.md") from error
    return fabric


class _State:
    """Whether this process has been one of several: their environment cannot be made twice."""

    launched = False


def share_of(fabric: Fabric) -> Share:
    """Return the part of every batch that this process computes."""
    return Share(fabric.global_rank, fabric.world_size)


def voice(fabric: Fabric, progress: Progress) -> Progress:
    """Return ``progress`` for the first process, silence for the others."""
    return progress if fabric.is_global_zero else SILENT


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of ``value`` over all processes, without a graph; ``value`` itself where there is one."""
    if not distributed.is_initialized():
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def latest(fabric: Fabric, *values: float) -> list[float]:
    """Return the largest of each of ``values`` over all processes: the clock of the slowest, the signal that any of them heard."""
    if fabric.world_size == 1:
        return list(values)
    heard = torch.tensor(values, device=fabric.device)
    distributed.all_reduce(heard, distributed.ReduceOp.MAX)
    return heard.tolist()


def set_apart(module: nn.Module, part: nn.Module | None) -> None:
    """Keep DDP's hands off ``part`` of ``module``, which moves by steps of its own; it starts everywhere as it is in the first process."""
    if part is None or not distributed.is_initialized():
        return
    for tensor in part.state_dict().values():
        distributed.broadcast(tensor, 0)
    own = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
    names = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if id(tensor) in own]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]


def average_gradients(module: nn.Module | None) -> None:
    """Average the gradients of ``module`` over all processes; one that has none here counts as 0."""
    if module is None or not distributed.is_initialized():
        return
    for parameter in module.parameters():
        parameter.grad = mean_over_ranks(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def dismiss(fabric: Fabric) -> None:
    """End all processes but the first: what is left to do is files."""
    if not fabric.is_global_zero:
        sys.exit(0)


def _lost(error: BaseException) -> bool:
    """Return whether ``error`` says no more than that another process does not answer."""
    return isinstance(error, distributed.DistError) or (
        type(error) is RuntimeError and any(sign in str(error) for sign in ("gloo", "monitoredBarrier"))
    )


def _told_before(code: int) -> int | None:
    """Tell the others that this process fails with ``code``; return the code of the one that failed before, None if this is the first."""
    try:
        store = distributed.distributed_c10d._get_default_store()
        if store.add(FAILED, 1) > 1:
            return int(store.get(CODE))
        store.set(CODE, str(code))
    except RuntimeError:  # the store lives in rank 0, which is gone
        return MachineError.exit_code
    return None


def _end(fabric: Fabric, patience: float | None) -> None:
    """Wait ``patience`` seconds, None for ever, until the processes that this one started have ended; then end them."""
    for process in getattr(fabric.strategy.launcher, "procs", ()):
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        process.wait()
        for name in LAUNCHED:
            os.environ.pop(name, None)
