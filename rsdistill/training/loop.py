"""The one loop for teacher and student, on Lightning Fabric: terms, backward, step, critic, log, validate, save, resume."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from rsdistill.batches import Batch
from rsdistill.data.dataset import BatchSource, loader, normalise
from rsdistill.errors import DivergedError
from rsdistill.models.network import Network
from rsdistill.reporting import Progress, Task
from rsdistill.training.interrupts import postponed
from rsdistill.training.logs import RunLog
from rsdistill.training.objectives import Objective
from rsdistill.training.optimisers import critic_optimiser, learning_rate_factor, optimiser, ramped_average
from rsdistill.training.settings import TrainingConfig
from rsdistill.training.state import load_state, save_state

SAVE_SECONDS = 120.0
"""Longest time between two saved states."""
ROLLBACKS = 3
"""Times that a run goes back to its last good state, each time with half the step size, before it gives up."""

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
    """One training run.

    Raises:
        DivergedError: a term stayed not finite after :data:`ROLLBACKS` returns to the last good state.
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
        self.objective.to(device)
        self.objective.begin(self.batch(0))
        self.objective.to(device)
        main = optimiser(self.objective, self.config)
        critic = critic_optimiser(self.objective)
        self.model, *wrapped = self.fabric.setup(self.objective, *([main] if critic is None else [main, critic]))
        self.optimiser, self.critic = wrapped[0], wrapped[1] if critic is not None else None
        self.average = AveragedModel(self.objective.network, multi_avg_fn=ramped_average(self.config.ema)) if self.config.ema else None

    def run(self, fingerprint: str) -> Outcome:
        """Train to the end of the budget, from the saved state where one with this ``fingerprint`` is asked for."""
        saved = load_state(self.state, fingerprint, self.progress) if self.config.resume else None
        if saved is not None:
            self._restore(saved)
        with self.progress.task("train", total=self.steps) as bar:
            bar.advance(self.step)
            while not self._finished():
                try:
                    self._advance(bar, fingerprint)
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
        batches = loader(self.source, range(self.step, self.steps), self.config.workers, pin_memory=self.fabric.device.type == "cuda")
        saved = clock = time.monotonic()
        for raw in batches:
            with postponed(lambda: save_state(self.state, self._state(), fingerprint)):
                loss = self._train_step(raw)
                self.step += 1
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
            bar.advance(
                1,
                loss=loss,
                miou=self.best.get("latest", math.nan),
                **{"tiles/s": raw.image.shape[0] * self.step / max(self.seconds, 1e-9)},
            )
            done = self._finished()
            if self.step % every == 0 or done:
                self._validate()
            if self.step % self.log.every == 0 or self.step % every == 0 or done:
                self._write_log()
            if self.step % every == 0 or done or now - saved > SAVE_SECONDS:
                save_state(self.state, self._state(), fingerprint)
                saved = time.monotonic()
            clock = time.monotonic()  # neither validation nor saving counts as training time
            if done:
                return

    def _train_step(self, raw: Batch) -> float:
        share = self._elapsed_share()
        method = self.objective.method
        if method is not None:
            method.schedule(share)
        factor = learning_rate_factor(share, self.config.warmup, self.config.power) * 0.5**self.rollbacks
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        self.model.train()
        batch = self._normalised(raw)
        terms = self.model(batch, self.step)
        loss = self._sum(terms)
        self.fabric.backward(loss / self.config.accumulate)
        if (self.step + 1) % self.config.accumulate == 0:
            self._move()
        if self.critic is not None:
            self._critic_step(self.critic)
        self.recent["lr"].append(self.config.peak_lr * factor)
        return float(loss.detach())

    def _sum(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of ``terms``; log each raw and weighted."""
        weights = self.objective.weights()
        values = torch.stack([term.detach().float() for term in terms.values()]).tolist()
        for name, value in zip(terms, values, strict=True):
            if not math.isfinite(value):
                raise DivergedError(f"term '{name}' is {value} at step {self.step}", hint="use a smaller --lr, or --precision float32")
            self.recent[name].append(value)
            self.recent[f"{name}.weighted"].append(weights.get(name, 1.0) * value)
        loss = torch.stack([weights.get(name, 1.0) * term.float() for name, term in terms.items()]).sum()
        self.recent["loss"].append(float(loss.detach()))
        return loss

    def _move(self) -> None:
        if self.config.clip:
            norm = self.fabric.clip_gradients(self.model, self.optimiser, max_norm=self.config.clip, error_if_nonfinite=False)
            if norm is not None:
                self.recent["gradient_norm"].append(float(norm))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.objective.network)

    def _critic_step(self, optimiser: Any) -> None:
        with self.fabric.autocast():
            terms = self.objective.critic_terms()  # type: ignore[operator]
        if terms:
            self.fabric.backward(torch.stack([term.float() for term in terms.values()]).sum())
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            for name, term in terms.items():
                self.recent[f"critic.{name}"].append(float(term.detach()))

    def batch(self, step: int) -> Batch:
        """Return the batch of ``step`` as the objective takes it."""
        return self._normalised(self.source[step])

    def _normalised(self, raw: Batch) -> Batch:
        batch = normalise(raw, self.mean, self.std, self.fabric.device)
        return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))

    def _evaluated(self) -> Network:
        return cast(Network, self.average.module) if self.average is not None else self.objective.network

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self._evaluated().state_dict().items()}

    def _validate(self) -> None:
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
        self.log.write({"step": self.step, "seconds": round(self.seconds, 3), **row})
        self.recent.clear()

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
        saved = load_state(self.state, fingerprint, self.progress) if self.state.exists() else None
        if saved is None or self.rollbacks >= ROLLBACKS:
            raise error
        rollbacks = self.rollbacks + 1
        self._restore(saved)
        self.rollbacks = rollbacks
        self.recent.clear()
        self.progress.warn(f"{error}; back to step {self.step} with {0.5**rollbacks:g} of the learning rate")
