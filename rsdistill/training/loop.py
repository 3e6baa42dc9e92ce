"""The one loop for teacher and student, on Lightning Fabric: terms, backward, step, critic, log, validate, save, resume."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from rsdistill.batches import Batch
from rsdistill.data.dataset import BatchSource, Share, normalise
from rsdistill.data.loading import loader, parts_of
from rsdistill.errors import DivergedError
from rsdistill.models.network import Network
from rsdistill.reporting import Progress, Task
from rsdistill.training.divergence import broken_terms, diverged
from rsdistill.training.interrupts import postponed
from rsdistill.training.logs import RunLog
from rsdistill.training.memory import halved, until_it_fits
from rsdistill.training.objectives import Objective, Seen
from rsdistill.training.optimisers import learning_rate_factor
from rsdistill.training.ranks import average_gradients, dismiss, latest, mean_over_ranks, share_of
from rsdistill.training.settings import TrainingConfig
from rsdistill.training.sharded import learner_for
from rsdistill.training.state import load_state, save_state

SAVE_SECONDS = 120.0
"""Longest time between two saved states."""
ROLLBACKS = 3
"""Times that a run goes back to its last good state, each time with half the step size, before it gives up."""
SKIPS = 20
"""Steps in a row that the scaler of half precision may skip: it starts too high on purpose, and halves itself each time."""

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
        DivergedError: a term, a gradient or a weight stayed not finite after :data:`ROLLBACKS` returns to the last good state.
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
    skipped: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        card, device = self.source.reader.card, self.fabric.device
        self.mean, self.std = torch.tensor(card.mean), torch.tensor(card.std)
        self.shares: list[Share] = [share_of(self.fabric)]
        self.objective.to(device).begin(next(self.batches(0)))
        self.objective.to(device)
        self.learner = learner_for(self.objective, self.config, self.fabric)

    def run(self, fingerprint: str) -> Outcome:
        """Train to the end of the budget, from the saved state where one with this ``fingerprint`` is asked for."""
        saved = self._saved(fingerprint) if self.config.resume else None
        if saved is not None:
            self._restore(saved)
        else:  # what there is to go back to before the first validation; and a disk that takes no state is known at once
            self._save(fingerprint)
        with self.progress.task("train", total=self.steps) as bar:
            bar.advance(self.step)
            while not self._finished():
                try:
                    self.fitting(lambda: self._advance(bar, fingerprint))
                except DivergedError as error:
                    self._roll_back(error, fingerprint)
        last = self.learner.weights()
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
            tiles = self.fabric.world_size * sum(len(raw.image) for raw in raws) * self.step
            bar.advance(1, loss=loss, miou=self.best.get("latest", math.nan), **{"tiles/s": tiles / max(self.seconds, 1e-9)})
            done = self._finished()
            whole = self.step % every == 0 or done
            late = whole or now - saved > SAVE_SECONDS
            if late:
                self._refuse_broken_weights()
            if whole:
                self._validate()
            if whole or self.step % self.log.every == 0:
                self._write_log()
            if late:
                self._save(fingerprint)
                saved = time.monotonic()
            clock = time.monotonic()  # neither validation nor saving counts as training time
            if done:
                return

    def _train_step(self, raws: list[Batch]) -> float:
        elapsed = self._elapsed_share()
        if self.objective.method is not None:
            self.objective.method.schedule(elapsed)
        factor = learning_rate_factor(elapsed, self.config.warmup, self.config.power) * 0.5**self.rollbacks
        for group in self.learner.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        self.learner.model.train()
        seen, total = [], 0.0
        for raw, share in zip(raws, self.shares, strict=True):
            self._seed(share)
            loss = self._sum(self.learner.model(self._normalised(raw), self.step))
            self.fabric.backward(loss / (self.config.accumulate * len(raws)))
            seen.append(self.objective.seen)
            total += self.recent["loss"][-1] / len(raws)
        if (self.step + 1) % self.config.accumulate == 0:
            self._move(raws)
        if self.learner.critic is not None:
            self._critic_step(seen)
        self.recent["lr"].append(self.config.peak_lr * factor)
        return total

    def _seed(self, share: Share) -> None:
        torch.manual_seed((self.config.seed * 1_000_003 + self.step + share.number * 2**40) % 2**63)

    def _sum(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of ``terms``; log each raw and weighted, as it is over all processes."""
        weights = self.objective.weights()
        values = mean_over_ranks(torch.stack([term.detach().float() for term in terms.values()])).tolist()
        for name, value in zip(terms, values, strict=True):
            if not math.isfinite(value):
                raise diverged(f"term '{name}' is {value}", self.step, self.source)
            self.recent[name].append(value)
            self.recent[f"{name}.weighted"].append(weights.get(name, 1.0) * value)
        self.recent["loss"].append(sum(weights.get(name, 1.0) * value for name, value in zip(terms, values, strict=True)))
        return torch.stack([weights.get(name, 1.0) * term.float() for name, term in terms.items()]).sum()

    def _move(self, raws: list[Batch]) -> None:
        norm = self.learner.clip(self.config.clip or math.inf)
        self.recent["gradient_norm"] += [norm] if math.isfinite(norm) else []
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if self.skipped > (SKIPS if self.config.precision == "fp16" else 0):
            raise diverged(f"the gradient{self._broken_terms(raws)} is not finite", self.step, self.source)
        self.learner.move()

    def _broken_terms(self, raws: list[Batch]) -> str:
        """Return which terms' gradients are not finite, in words."""
        found: dict[str, None] = {}
        for raw, share in zip(raws, self.shares, strict=True) if self.learner.terms_apart else ():
            self._seed(share)
            with self.fabric.autocast():
                found |= dict.fromkeys(broken_terms(self.objective, self._normalised(raw), self.step))
        return f" of term {', '.join(map(repr, found))}" if found else ""

    def _critic_step(self, seen: list[Seen | None]) -> None:
        """Move the critic by what it says of the outputs of all parts of the step; DDP does not know of its gradients."""
        for outputs in seen:
            with self.fabric.autocast():
                terms = self.objective.critic_terms(outputs)
            if not terms:
                return
            self.fabric.backward(torch.stack([term.float() for term in terms.values()]).sum() / len(seen))
            for name, term in terms.items():
                value = float(mean_over_ranks(term.detach()))
                if not math.isfinite(value):
                    raise diverged(f"term 'critic.{name}' is {value}", self.step, self.source)
                self.recent[f"critic.{name}"].append(value)
        average_gradients(self.objective.critic)
        self.learner.move_critic()

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield this process's parts of the batch of ``step`` as the objective takes them."""
        return (self._normalised(self.source.part(step, share)) for share in self.shares)

    def _normalised(self, raw: Batch) -> Batch:
        batch = normalise(raw, self.mean, self.std, self.fabric.device)
        return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))

    def _validate(self) -> None:
        """Measure the network in the first process; the others wait, however long it takes."""
        self.learner.gather()
        with self.fabric.rank_zero_first():
            if not self.fabric.is_global_zero:
                return
            network = self.learner.evaluated
            network.eval()
            with torch.inference_mode():
                figures = self.validate(network)
        self.best["latest"] = figures["miou"]
        for name, value in figures.items():
            self.recent[name].append(value)
        if "figures" not in self.best or figures["miou"] >= self.best["figures"]["miou"]:
            self.best |= {"figures": figures | {"step": float(self.step)}, "weights": self.learner.weights()}

    def _write_log(self) -> None:
        row = {name: sum(values) / len(values) for name, values in self.recent.items() if values}
        if self.fabric.is_global_zero:
            self.log.write({"step": self.step, "seconds": round(self.seconds, 3), **row})
        self.recent.clear()

    def _agreed(self, signal: int) -> int:
        self.seconds, first = latest(self.fabric, self.seconds, float(signal))
        return int(first)

    def _refuse_broken_weights(self) -> None:
        """Raise DivergedError, in all processes or in none, where a weight is no longer finite; such a state is never saved."""
        name = self.learner.broken_weight()
        if any(latest(self.fabric, float(name is not None))):
            raise diverged(f"the weight '{name}' is not finite" if name else "a weight is not finite", self.step - 1, self.source)

    def _save(self, fingerprint: str) -> None:
        state = self._state()
        if self.fabric.is_global_zero and self.learner.broken_weight() is None:
            save_state(self.state, state, fingerprint)

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
            **self.learner.state_dict(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.step, self.seconds, self.rollbacks, self.best = saved["step"], saved["seconds"], saved["rollbacks"], saved["best"]
        self.log.restore(saved["log"])
        self.learner.load_state_dict(saved)

    def _roll_back(self, error: DivergedError, fingerprint: str) -> None:
        rollbacks, saved = self.rollbacks + 1, self._saved(fingerprint)
        if saved is None or rollbacks > ROLLBACKS:
            raise error
        self._restore(saved)
        self.rollbacks, self.skipped = rollbacks, 0
        self.recent.clear()
        self.progress.warn(f"{error}; back to step {self.step} with {0.5**rollbacks:g} of the learning rate")

    def fitting(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; when memory is exhausted, do it again with every step in twice as many parts."""
        return until_it_fits(work, self._shrink)

    def _shrink(self) -> None:
        self.shares = halved(self.shares, self.source.composition, self.fabric.world_size)
        self.step -= self.step % self.config.accumulate  # gradients that were waiting are gone, and are computed again
        self.learner.forget_gradients()
        self.progress.warn(f"out of memory at step {self.step}: steps are taken in {len(self.shares)} parts from here")
