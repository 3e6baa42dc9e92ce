"""The one loop for teacher and student, on Lightning Fabric: terms, backward, step, critic, log, validate, save, resume."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from rsdistill.batches import Batch
from rsdistill.data.dataset import BatchSource, Share, normalise
from rsdistill.data.loading import loader, parts_of
from rsdistill.errors import DivergedError
from rsdistill.models.backbones import synchronise_norms
from rsdistill.models.network import Network
from rsdistill.reporting import Progress, Task
from rsdistill.training.interrupts import postponed
from rsdistill.training.logs import RunLog
from rsdistill.training.memory import halved, until_it_fits
from rsdistill.training.objectives import Objective, Seen
from rsdistill.training.optimisers import critic_optimiser, learning_rate_factor, optimiser, ramped_average
from rsdistill.training.ranks import average_gradients, dismiss, latest, mean_over_ranks, set_apart, share_of
from rsdistill.training.settings import TrainingConfig
from rsdistill.training.state import load_state, save_state

SAVE_SECONDS = 120.0
"""Longest time between two saved states."""
ROLLBACKS = 3
"""Times that a run goes back to its last good state, each time with half the step size, before it gives up."""

T = TypeVar("T")
Validate = Callable[[Network], dict[str, float]]


@dataclass
class Outcome:
    """What training leaves: the weights of the best and of the last validation, and what they reached."""

    best: dict[str, Tensor]
    last: dict[str, Tensor]
    figures: dict[str, float]
    steps: int
    seconds: float


@dataclass
class Fit:
    """One training run; where there are several processes, the part of each in it.

    Raises:
        DivergedError: a term stayed not finite after :data:`ROLLBACKS` returns to the last good state.
        MemoryLimitError: the smallest part of a step does not fit into memory.
    """

    objective: Objective
    source: BatchSource
    config: TrainingConfig
    steps: int
    validate: Validate
    state: Path
    log: RunLog
    progress: Progress
    fabric: Fabric
    step: int = 0
    seconds: float = 0.0
    rollbacks: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        device = self.fabric.device
        card = self.source.reader.card
        self.mean, self.std = torch.tensor(card.mean), torch.tensor(card.std)
        self.shares: list[Share] = [share_of(self.fabric)]
        self.objective.to(device)
        self.objective.begin(next(self.batches(0)))
        self.objective.to(device)
        if self.fabric.world_size > 1 and device.type == "cuda":
            synchronise_norms(self.objective.network)
        main = optimiser(self.objective, self.config)
        critic = critic_optimiser(self.objective)
        set_apart(self.objective, self.objective.critic)
        self.model, *wrapped = self.fabric.setup(self.objective, *([main] if critic is None else [main, critic]))
        self.optimiser, self.critic = wrapped[0], wrapped[1] if critic is not None else None
        self.average = AveragedModel(self.objective.network, multi_avg_fn=ramped_average(self.config.ema)) if self.config.ema else None

    def run(self, fingerprint: str) -> Outcome:
        """Train to the end of the budget, from the saved state where one with this ``fingerprint`` is asked for."""
        saved = self._saved(fingerprint) if self.config.resume else None
        if saved is not None:
            self._restore(saved)
        with self.progress.task("train", total=self.steps) as bar:
            bar.advance(self.step)
            while not self._finished():
                try:
                    self.fitting(lambda: self._advance(bar, fingerprint))
                except DivergedError as error:
                    self._roll_back(error, fingerprint)
        last = self._weights()
        return Outcome(self.best.get("weights", last), last, self.best.get("figures", {}), self.step, self.seconds)

    def _finished(self) -> bool:
        return self.step >= self.steps or (self.config.max_seconds is not None and self.seconds >= self.config.max_seconds)

    def _elapsed_share(self) -> float:
        share = self.step / self.steps
        return max(share, self.seconds / self.config.max_seconds) if self.config.max_seconds else share

    def _advance(self, bar: Task, fingerprint: str) -> None:
        """Train until the budget ends, saving and validating on the way."""
        every = self.config.validate_every or max(1, math.ceil(self.steps / 5))
        pinned = self.fabric.device.type == "cuda"
        parts = parts_of(range(self.step, self.steps), self.shares)
        batches = loader(self.source, parts, self.config.workers, pin_memory=pinned, progress=self.progress)
        saved = clock = time.monotonic()
        while raws := list(islice(batches, len(self.shares))):
            with postponed(lambda: self._leave(fingerprint), self._agreed):
                loss = self._train_step(raws)
                self.step += 1
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
            tiles = self.fabric.world_size * sum(len(raw.image) for raw in raws)
            speed = {"tiles/s": tiles * self.step / max(self.seconds, 1e-9)}
            bar.advance(1, loss=loss, miou=self.best.get("latest", math.nan), **speed)
            done = self._finished()
            if self.step % every == 0 or done:
                self._validate()
            if self.step % self.log.every == 0 or self.step % every == 0 or done:
                self._write_log()
            if self.step % every == 0 or done or now - saved > SAVE_SECONDS:
                self._save(fingerprint)
                saved = time.monotonic()
            clock = time.monotonic()  # neither validation nor saving counts as training time
            if done:
                return

    def _train_step(self, raws: list[Batch]) -> float:
        elapsed = self._elapsed_share()
        method = self.objective.method
        if method is not None:
            method.schedule(elapsed)
        factor = learning_rate_factor(elapsed, self.config.warmup, self.config.power) * 0.5**self.rollbacks
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        self.model.train()
        seen, total = [], 0.0
        for raw, share in zip(raws, self.shares, strict=True):
            torch.manual_seed((self.config.seed * 1_000_003 + self.step + share.number * 2**40) % 2**63)
            loss = self._sum(self.model(self._normalised(raw), self.step))
            self.fabric.backward(loss / (self.config.accumulate * len(raws)))
            seen.append(self.objective.seen)
            total += self.recent["loss"][-1] / len(raws)
        if (self.step + 1) % self.config.accumulate == 0:
            self._move()
        if self.critic is not None:
            self._critic_step(self.critic, seen)
        self.recent["lr"].append(self.config.peak_lr * factor)
        return total

    def _sum(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of ``terms``; log each raw and weighted, as it is over all processes."""
        weights = self.objective.weights()
        values = mean_over_ranks(torch.stack([term.detach().float() for term in terms.values()])).tolist()
        for name, value in zip(terms, values, strict=True):
            if not math.isfinite(value):
                raise DivergedError(f"term '{name}' is {value} at step {self.step}", hint="use a smaller --lr, or --precision float32")
            self.recent[name].append(value)
            self.recent[f"{name}.weighted"].append(weights.get(name, 1.0) * value)
        self.recent["loss"].append(sum(weights.get(name, 1.0) * value for name, value in zip(terms, values, strict=True)))
        return torch.stack([weights.get(name, 1.0) * term.float() for name, term in terms.items()]).sum()

    def _move(self) -> None:
        if self.config.clip:
            norm = self.fabric.clip_gradients(self.model, self.optimiser, max_norm=self.config.clip, error_if_nonfinite=False)
            if norm is not None:
                self.recent["gradient_norm"].append(float(norm))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.objective.network)

    def _critic_step(self, optimiser: Any, seen: list[Seen | None]) -> None:
        """Move the critic by what it says of the outputs of all parts of the step; DDP does not know of its gradients."""
        for outputs in seen:
            with self.fabric.autocast():
                terms = self.objective.critic_terms(outputs)
            if not terms:
                return
            self.fabric.backward(torch.stack([term.float() for term in terms.values()]).sum() / len(seen))
            for name, term in terms.items():
                self.recent[f"critic.{name}"].append(float(mean_over_ranks(term.detach())))
        average_gradients(self.objective.critic)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield this process's parts of the batch of ``step`` as the objective takes them."""
        return (self._normalised(self.source.part(step, share)) for share in self.shares)

    def _normalised(self, raw: Batch) -> Batch:
        batch = normalise(raw, self.mean, self.std, self.fabric.device)
        return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))

    def _evaluated(self) -> Network:
        return cast(Network, self.average.module) if self.average is not None else self.objective.network

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self._evaluated().state_dict().items()}

    def _validate(self) -> None:
        """Measure the network in the first process; the others wait, however long it takes."""
        with self.fabric.rank_zero_first():
            if not self.fabric.is_global_zero:
                return
            network = self._evaluated()
            network.eval()
            with torch.inference_mode():
                figures = self.validate(network)
        self.best["latest"] = figures["miou"]
        for name, value in figures.items():
            self.recent[name].append(value)
        if "figures" not in self.best or figures["miou"] >= self.best["figures"]["miou"]:
            self.best |= {"figures": figures | {"step": float(self.step)}, "weights": self._weights()}

    def _write_log(self) -> None:
        row = {name: sum(values) / len(values) for name, values in self.recent.items() if values}
        if self.fabric.is_global_zero:
            self.log.write({"step": self.step, "seconds": round(self.seconds, 3), **row})
        self.recent.clear()

    def _agreed(self, signal: int) -> int:
        self.seconds, first = latest(self.fabric, self.seconds, float(signal))
        return int(first)

    def _save(self, fingerprint: str) -> None:
        if self.fabric.is_global_zero:
            save_state(self.state, self._state(), fingerprint)

    def _leave(self, fingerprint: str) -> None:
        """Save before a signal ends the run; the other processes stay until that is done."""
        self._save(fingerprint)
        self.fabric.barrier()
        dismiss(self.fabric)

    def _saved(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the state that the first process finds."""
        return self.fabric.broadcast(load_state(self.state, fingerprint, self.progress) if self.fabric.is_global_zero else None)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "best": dict(self.best),
            "log": self.log.rows,
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "critic": self.critic.state_dict() if self.critic is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.step, self.seconds, self.rollbacks, self.best = saved["step"], saved["seconds"], saved["rollbacks"], saved["best"]
        self.log.restore(saved["log"])
        self.objective.load_state_dict(saved["objective"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.critic is not None:
            self.critic.load_state_dict(saved["critic"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])

    def _roll_back(self, error: DivergedError, fingerprint: str) -> None:
        saved = self._saved(fingerprint)
        if saved is None or self.rollbacks >= ROLLBACKS:
            raise error
        rollbacks = self.rollbacks + 1
        self._restore(saved)
        self.rollbacks = rollbacks
        self.recent.clear()
        self.progress.warn(f"{error}; back to step {self.step} with {0.5**rollbacks:g} of the learning rate")

    def fitting(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; when memory is exhausted, do it again with every step in twice as many parts."""
        return until_it_fits(work, self._shrink)

    def _shrink(self) -> None:
        self.shares = halved(self.shares, self.source.composition, self.fabric.world_size)
        self.step -= self.step % self.config.accumulate  # gradients that were waiting are gone, and are computed again
        for each in filter(None, (self.optimiser, self.critic)):
            each.zero_grad(set_to_none=True)
        self.progress.warn(f"out of memory at step {self.step}: steps are taken in {len(self.shares)} parts from here")
