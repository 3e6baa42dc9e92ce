"""What runs a network on this machine: candidates are timed on four windows of the scene and compared with float32, once a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import ConfigError, RsdistillError
from rsdistill.geo.windows import Window
from rsdistill.inference.backends import Backend
from rsdistill.inference.engine import Job, padded
from rsdistill.inference.loading import Choice, Model, refuse_unfit
from rsdistill.inference.reading import Source
from rsdistill.inference.settings import Engine, MapConfig, Precision
from rsdistill.reporting import Progress

WINDOWS = 4
AGREEMENT = 0.99
"""Share of pixels that must get the class that float32 gives them."""
GAIN = 1.1
"""How many times as fast a candidate must be to be worth another rounding."""


@dataclass(frozen=True)
class Sample:
    """One window of the scene as a backend takes it."""

    image: NDArray[Any]
    """(C, T, T)."""
    valid: NDArray[np.bool_]
    """(T, T)."""
    window: Window

    @classmethod
    def read(cls, scene: Source, bands: Sequence[int], window: Window, size: tuple[int, int]) -> "Sample":
        """Read ``window`` and mirror it up to ``size``."""
        image, valid = scene.read(window, bands)
        return cls(*padded(size, image, valid), window)

    def labels(self, backend: Backend) -> NDArray[np.uint8]:
        """Return what ``backend`` says of it, (T, T)."""
        return backend.labels(self.image[None], self.valid[None], [self.window])[0]


@dataclass(frozen=True)
class Trial:
    """How a candidate did."""

    choice: Choice
    seconds: float = float("inf")
    """For a window."""
    agreement: float = 0.0
    """Share of valid pixels that get the reference's class."""
    error: RsdistillError | None = None
    """Why it could not run."""


def settled(
    model: Model,
    config: MapConfig,
    windows: Callable[[], Sequence[Sample]],
    make: Callable[..., Backend],
    *,
    on_processor: bool,
    progress: Progress,
) -> Choice:
    """Return what runs ``model``: what ``config`` names, once it was seen to agree with float32, or with ``auto`` what is best.

    Args:
        model: the network.
        config: names a backend and an arithmetic, or leaves them open.
        windows: returns some of the scene, where they are needed.
        make: returns the backend of a choice, given ``compiled``.
        on_processor: whether there is no accelerator to run it on.
        progress: told what was measured.

    Raises:
        ConfigError: what was named cannot run, or too many labels differ.
    """
    reference = model.reference
    open_ = config.backend is None or config.backend == "auto"
    named = Choice(reference.backend if open_ else cast(Engine, config.backend), config.precision or "float32")
    if config.backend == "auto":
        others = candidates(model, config.precision, on_processor=on_processor)
    else:
        refuse_unfit(model, named, config.device)
        others = [named]
    if others == [reference] and not config.compile:
        return reference
    if not (seen := windows()):
        return named
    runs = [(reference, partial(make, reference, compiled=False))]
    runs += [(one, partial(make, one, compiled=config.compile)) for one in others]
    trials = try_out(runs, seen)
    if config.backend == "auto":
        best = fastest(trials)
        progress.message(explained(trials, best))
        return best.choice
    _refuse_disagreeing(trials[1], reference)
    progress.message(f"{named}: {_figures(trials[1], trials[0])}, on {len(seen)} windows")
    return named


def _refuse_disagreeing(trial: Trial, reference: Choice) -> None:
    if trial.error is not None:
        raise trial.error
    if trial.agreement < AGREEMENT:
        found = f"{trial.choice} gives {100 * trial.agreement:.2f} % of the pixels of some windows the class that {reference} gives them"
        raise ConfigError(f"{found}; {100 * AGREEMENT:.0f} % are asked for", hint="leave --backend, --precision and --compile out")


def samples(scene: Source, bands: Sequence[int], job: Job) -> list[Sample]:
    """Return up to :data:`WINDOWS` windows spread over what is mapped, the fullest of those looked at; [] where none has data."""
    rows, cols = _spread(job.rows), _spread(job.cols)
    places = sorted(product(range(len(rows)), range(len(cols))), key=max)  # the four around the middle first
    found: list[Sample] = []
    for row, col in places:
        window = job.plan.placement(rows[row], cols[col]).read
        sample = Sample.read(scene, bands, window, job.plan.tile)
        if sample.valid.any():
            found = sorted([*found, sample], key=lambda one: -one.valid.mean())[:WINDOWS]
        if len(found) == WINDOWS and found[-1].valid.all():
            break
    return sorted(found, key=lambda one: one.window)


def _spread(places: range) -> list[int]:
    """Return up to eight of ``places``: those at a quarter and three quarters first, then between and around them."""
    wanted = (0.25, 0.75, 0.5, 0.0, 0.999, 0.125, 0.875, 0.375)
    return list(dict.fromkeys(places[int(share * len(places))] for share in wanted))


def candidates(model: Model, precision: Precision | None, *, on_processor: bool) -> list[Choice]:
    """Return what may run ``model`` beside the reference; with ``precision``, other arithmetic than that is no candidate."""
    if model.network is None:
        others = [Choice("openvino"), Choice("openvino", "bf16")]
    elif not on_processor:
        others = [Choice("torch", "bf16"), Choice("torch", "fp16")]
    elif model.needs_context:
        others = [Choice("torch", "bf16")]
    else:
        others = [Choice("torch", "bf16"), Choice("onnx"), Choice("openvino"), Choice("openvino", "bf16")]
    return [one for one in others if precision in (None, one.precision)]


def try_out(runs: Sequence[tuple[Choice, Callable[[], Backend]]], windows: Sequence[Sample]) -> list[Trial]:
    """Run each candidate on the windows; the first is the reference, and of the others those that cannot run keep their error.

    Window by window, one candidate after the other: what else the machine does meanwhile then slows all of them.
    """
    ready: dict[int, Backend] = {}
    errors: dict[int, RsdistillError] = {}
    for number, (_, make) in enumerate(runs):
        try:
            ready[number] = make()
            windows[0].labels(ready[number])  # what is done once, such as compiling, is not what is measured
        except RsdistillError as error:
            if number == 0:
                raise
            errors[number] = error
            ready.pop(number, None)
    times, answers = dict.fromkeys(ready, 0.0), {number: list[NDArray[np.uint8]]() for number in ready}
    for window in windows:
        for number, backend in ready.items():
            start = perf_counter()
            answers[number].append(window.labels(backend))
            times[number] += perf_counter() - start
    return [
        Trial(choice, error=errors[number])
        if number in errors
        else Trial(choice, times[number] / len(windows), agreement(answers[0], answers[number], windows))
        for number, (choice, _) in enumerate(runs)
    ]


def agreement(expected: Sequence[NDArray[np.uint8]], answers: Sequence[NDArray[np.uint8]], windows: Sequence[Sample]) -> float:
    """Return the share of the windows' valid pixels that get the class they should."""
    equal = sum(int((one == other)[sample.valid].sum()) for one, other, sample in zip(expected, answers, windows, strict=True))
    return equal / sum(int(sample.valid.sum()) for sample in windows)


def fastest(trials: Sequence[Trial]) -> Trial:
    """Return the fastest that agrees with the first, which itself is taken where none is worth it."""
    agreeing = [trial for trial in trials if trial.agreement >= AGREEMENT]
    best = min(agreeing, key=lambda trial: trial.seconds)
    return best if best.seconds * GAIN <= trials[0].seconds else trials[0]


def explained(trials: Sequence[Trial], chosen: Trial) -> str:
    """Return in one line what was chosen and why."""
    others = []
    for trial in trials:
        if trial.error:
            others.append(f"{trial.choice}: {trial.error}")
        elif trial is not chosen:
            others.append(f"{trial.choice} {_figures(trial, trials[0])}")
    return f"backend {chosen.choice}: {_figures(chosen, trials[0])}; " + "; ".join(others)


def _figures(trial: Trial, reference: Trial) -> str:
    if trial is reference:
        return f"{trial.seconds:.2g} s a window, the reference"
    return f"{reference.seconds / trial.seconds:.1f} times as fast, {100 * trial.agreement:.2f} % of labels equal"


def choice_in(mark: Mapping[str, Any] | None) -> Choice | None:
    """Return what a run had chosen that left ``mark`` (see :meth:`Mapper.mark`); None where that is not known."""
    options = (mark or {}).get("options", {})
    backend, precision = options.get("backend"), options.get("precision")
    return Choice(backend, precision) if backend in get_args(Engine) and precision in get_args(Precision) else None
