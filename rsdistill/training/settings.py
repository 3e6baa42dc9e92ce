"""What ``train-teacher`` and ``distill`` have in common: the budget, the optimiser, the data and the machine (no torch here)."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rsdistill.config import Device, RunConfig


def _quotient(value: Any) -> Any:
    """Return a text such as ``1/16`` as a number; leave all else to the check that follows."""
    try:
        return float(Fraction(value.replace(" ", ""))) if isinstance(value, str) and "/" in value else value
    except (ValueError, ZeroDivisionError):
        return value


Share = Annotated[float, BeforeValidator(_quotient), Field(gt=0, le=1)]
"""A part of a whole, also written as a fraction."""


class TrainingConfig(RunConfig):
    """Options of every command that trains a network."""

    tiles: Path | None = Field(None, description="Tile set folder (default WORK/tiles).")
    out: Path | None = Field(None, description="Model file to write (default in WORK).")
    steps: int | None = Field(
        None, ge=1, description="Training steps, the budget (default: minutes on this machine; the command says what is serious)."
    )
    max_seconds: float | None = Field(
        None, gt=0, description="Stop after so many seconds of training; the schedule then follows the clock."
    )
    labels_fraction: Share = Field(
        1.0,
        description="Share of the training tiles whose labels are used, 0.125 or 1/8: the same tiles for every command and seed; "
        "the rest counts as unlabelled.",
    )
    batch: int | None = Field(None, ge=1, description="Tiles in a step (default 8; without a GPU as many as make half a megapixel).")
    contexts: int = Field(4, ge=1, description="Context images that the tiles of a step share, for networks that read context.")
    context_side: int = Field(
        128,
        ge=16,
        le=512,
        description="Side of these context images in context pixels, or two sides of a tile where those are longer: a few whole scenes "
        "are learned by heart, windows of them are not.",
    )
    accumulate: int = Field(1, ge=1, description="Steps whose gradients are added before the optimiser moves.")
    weights: str = Field(
        "none", description="Encoder weights: none, imagenet, timm:TAG, torchgeo:NAME (fetched once), or a .safetensors, .pt or .pth file."
    )
    offline: bool = Field(False, description="Never use the network.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float | None = Field(None, gt=0, le=1e30, description="Peak learning rate (default 1e-3 for adamw, 1e-2 for sgd).")
    encoder_lr: float = Field(0.3, gt=0, le=1, description="Factor of the learning rate for an encoder that starts from --weights.")
    weight_decay: float | None = Field(None, ge=0, le=1e6, description="Weight decay (default 0.05 for adamw, 5e-4 for sgd).")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the budget in which the learning rate rises.")
    power: float = Field(0.9, gt=0, description="Power of the polynomial decay.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 leaves it alone.")
    ema: float = Field(0.99, ge=0, lt=1, description="Decay of the averaged weights that are validated and saved; 0 turns averaging off.")
    loss: tuple[Literal["ce", "dice", "focal"], ...] = Field(
        ("ce",), min_length=1, description="Supervised terms, comma-separated: ce, dice, focal."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="Weight of each class in ce: equal, or by inverse square root of its share."
    )
    augment: float = Field(
        0.2, ge=0, lt=1, description="Strength of brightness and contrast changes, in standard deviations; turns and flips are always on."
    )
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    precision: Literal["float32", "bf16", "fp16"] = Field("float32", description="Arithmetic of the networks in training.")
    workers: int = Field(0, ge=0, description="Processes that read tiles ahead; 0 reads in the training process.")
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of the network (default: all cores).")
    validate_every: int | None = Field(None, ge=1, description="Steps between validations (default: a fifth of the budget).")
    validation: Literal["auto", "scene", "tile"] = Field("auto", description="mIoU over whole scenes, or over the validation tiles only.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events beside the model.")
    resume: bool = Field(False, description="Go on where an interrupted run of the same command stopped.")

    @property
    def tile_folder(self) -> Path:
        """Where the tile set is."""
        return self.tiles or self.work / "tiles"

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.lr or {"adamw": 1e-3, "sgd": 1e-2}[self.optimizer]

    @property
    def decay(self) -> float:
        """Weight decay of the optimiser."""
        return {"adamw": 0.05, "sgd": 5e-4}[self.optimizer] if self.weight_decay is None else self.weight_decay


class LaunchConfig(TrainingConfig):
    """Options of a command that trains one network, on as many devices as there are."""

    devices: int = Field(1, ge=1, description="Devices of this machine to train on, one process each; torchrun's own number wins.")
    nodes: int = Field(1, ge=1, description="Machines that take part, where Slurm starts the processes; torchrun's own number wins.")
