"""``train-teacher``: a tile set in, the teacher network out."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rsdistill.errors import ConfigError
from rsdistill.reporting import SILENT, Progress, Result
from rsdistill.training.settings import LaunchConfig

SERIOUS = (
    "rsdistill train-teacher --encoder resnet50 --weights imagenet --set dim=128 --steps 20000 --batch 16 --lr 1e-4 "
    "--encoder-lr 0.1 --ema 0.999 --device cuda --precision bf16"
)


class TrainTeacherConfig(LaunchConfig):
    """Options of ``train-teacher``."""

    arch: str = Field(
        "ginet", description="Network: ginet, local (the same without the global branch), pspnet, deeplabv3plus, fpn, segformer."
    )
    encoder: str | None = Field(None, description="Encoder by its timm name (default: a light one).")
    ggn: Literal["spatial", "vector", "none"] | None = Field(
        None, description="Global-guided normalisation of a ginet: a map, one vector a tile, or none."
    )
    lad: Literal["mse", "kl", "none"] = Field("mse", description="Local affinity distillation of a ginet.")
    lad_weight: float = Field(1.0, ge=0, description="Weight of local affinity distillation after its warm-up.")
    fusion: bool | None = Field(None, description="Whether a ginet's head also reads the global mask feature (default on).")
    shared_encoder: bool | None = Field(None, description="Whether a ginet's branches share one encoder.")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="How several devices hold the network: each all of it, or each a piece, for one that a device cannot hold."
    )
    set: dict[str, Any] = Field({}, description="Further options of the network, such as dim=128 (repeat for more).")

    @model_validator(mode="after")
    def _scaled_as_one(self) -> Self:
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("--strategy fsdp does not go with --precision fp16; bf16 needs no loss scale")
        return self

    def arch_args(self) -> dict[str, Any]:
        """Return the options of the network that were given; its own defaults hold for the others."""
        named = {"encoder": self.encoder, "ggn": self.ggn, "fusion": self.fusion, "shared_encoder": self.shared_encoder}
        given = {name: value for name, value in named.items() if value is not None}
        if twice := sorted(set(given) & set(self.set)):
            raise ConfigError(f"'{twice[0]}' is given twice", hint="by its own flag and by --set")
        return given | self.set


def train_teacher(*, progress: Progress = SILENT, **options: Any) -> Result:
    """Train the teacher: a GINet-style network that reads each tile and the whole scene made small.

    It needs a tile set with training and validation tiles. The result is WORK/teacher.safetensors, with its log, curves and run file.
    """
    config = TrainTeacherConfig.of(**options)
    from rsdistill.training.prepare import held, ready

    files = ready(config, "teacher.safetensors")

    from rsdistill.training.teacher import train

    sharded = config.strategy == "fsdp"
    how: dict[str, Any] = {"lad": config.lad, "lad_weight": config.lad_weight, "sharded": sharded, "serious": SERIOUS, "progress": progress}
    with held(files, config):
        return train(config, config.arch, config.arch_args(), files, **how)
