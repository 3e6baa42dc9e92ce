"""``distill``: a tile set and frozen teachers in, a small student out."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rsdistill.errors import ConfigError
from rsdistill.reporting import SILENT, Progress, Result
from rsdistill.training.settings import LaunchConfig

SERIOUS = (
    "rsdistill distill --method kd --student base --weights imagenet --steps 20000 --batch 16 --ema 0.999 --device cuda --precision bf16"
)


class DistillConfig(LaunchConfig):
    """Options of ``distill``."""

    method: str = Field("kd", description="Method, or several joined by +, such as kd+ifvd; ce is the student alone. See docs/methods.")
    teacher: tuple[Path, ...] = Field((), description="Teacher model, a path or a name in WORK (default teacher; repeat for more).")
    student: str = Field("small", description="Student: tiny, small, base, linear, or another --arch.")
    backbone: str | None = Field(None, description="Encoder of the student by its timm name.")
    arch_set: dict[str, Any] = Field({}, description="Options of the student's network, such as width=2 (repeat for more).")
    set: dict[str, Any] = Field({}, description="Options of the method, such as ifvd.weight=10 or kd.tau=4 (repeat for more).")
    calibrate: int = Field(8, ge=0, description="Batches on which the terms of the loss are measured before training; 0 leaves it out.")
    cache_teacher: bool = Field(
        False, description="Ask the teacher once a tile and keep its logits in WORK/cache; for methods that read nothing else."
    )
    teacher_views: Literal[1, 8] = Field(
        1, description="Turns and flips of each tile that a cached teacher is asked about; 8 keeps its mean answer (needs --cache-teacher)."
    )
    balance: float | None = Field(
        None, gt=0, description="Weigh each term so that its gradient is so many times that of cross-entropy (needs --calibrate)."
    )


def distill(*, progress: Progress = SILENT, **options: Any) -> Result:
    """Train a small student against frozen teachers.

    MGD here is multi-granularity distillation, not masked generative distillation. It needs a tile set and the teachers that its method
    asks for. The result is WORK/student.safetensors, with its log, curves and run file.
    """
    config = DistillConfig.of(**options)
    if config.balance and not (config.calibrate and "ce" in config.loss):
        raise ConfigError("--balance measures against cross-entropy", hint="it needs ce in --loss, and --calibrate above 0")
    if config.teacher_views > 1 and not config.cache_teacher:
        raise ConfigError("--teacher-views 8 is for a teacher that is asked once a tile", hint="add --cache-teacher")
    from rsdistill.inference.loading import find_model
    from rsdistill.methods import asks_teachers, check_names
    from rsdistill.models.card import read_card
    from rsdistill.training.prepare import held, ready

    files = ready(config, "student.safetensors")
    check_names(config.method)
    named = config.teacher or (Path("teacher"),)
    teachers = tuple(find_model(config.work, each) for each in named) if asks_teachers(config.method) else ()
    for path in teachers:
        read_card(path)
    arch_args = {**({"encoder": config.backbone} if config.backbone else {}), **config.arch_set}

    from rsdistill.training.student import Lesson
    from rsdistill.training.student import distill as train

    cache = config.work / "cache" if config.cache_teacher else None
    how = (config.calibrate, config.balance, cache, config.work / "cache" / "canvases", config.teacher_views)
    lesson = Lesson(config.method, config.set, teachers, config.student, arch_args, *how)
    with held(files, config):
        return train(config, lesson, files, serious=SERIOUS, progress=progress)
