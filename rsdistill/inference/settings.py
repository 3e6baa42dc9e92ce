"""How a model maps scenes: the options of every command that does (nothing heavy here)."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rsdistill.config import Device, RunConfig

Engine = Literal["torch", "onnx", "openvino"]
Precision = Literal["float32", "bf16", "fp16"]


class MapConfig(RunConfig):
    """Options of every command that maps scenes."""

    model: Path | None = Field(None, description="Model file, or the name of one in WORK (default student).")
    bands: tuple[int | str, ...] = Field((), description="Bands that the model reads, by number or name, in its order (default: its own).")
    nodata: tuple[float, ...] = Field((), description="Nodata where a file declares none: one value, or one a band (r,g,b).")
    allow_vrt: bool = Field(False, description="Read VRT files, whose sources must lie in their folder.")
    allow_remote: bool = Field(False, description="Read scenes from URLs and cloud storage.")
    require_crs: bool = Field(False, description="Refuse scenes without a coordinate reference system.")
    aoi: Path | None = Field(None, description="Vector file: only what lies in its polygons is mapped.")
    window: tuple[int, int, int, int] | None = Field(None, description="Map this part only: row,col,height,width in pixels.")
    tile: int | None = Field(None, ge=1, description="Side of the windows in pixels (default: what suits the model).")
    margin: int | None = Field(None, ge=0, description="Pixels at a window's rim whose result is not kept (default: the model's).")
    batch: int | None = Field(None, ge=1, description="Windows that pass the network at once (default 1, on an accelerator 16).")
    blend: Literal["core", "hann", "gaussian"] = Field(
        "core", description="Each pixel from the one window that owns it, or averaged over all that see it with these weights."
    )
    tta: Literal["none", "d4"] = Field("none", description="Average over turned and mirrored windows: d4 takes eight times as long.")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    backend: Literal[Engine, "auto"] | None = Field(
        None,
        description="What runs the network (default torch; for an exported model onnx): auto tries all on four windows of the first scene "
        "and takes the fastest that agrees.",
    )
    precision: Precision | None = Field(
        None, description="Arithmetic of the network (default float32; with --backend auto any): less is refused where labels differ."
    )
    compile: bool = Field(False, description="Let torch compile the network: some minutes before the first window, faster from then on.")
    max_memory: int | None = Field(
        None, ge=1, description="Memory in MB that mapping may take beside the program itself: windows are made smaller to fit."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of the network (default: all cores).")

    @field_validator("window", mode="before")
    @classmethod
    def _four_numbers(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) != 4:
            raise ValueError("four numbers are needed: row,col,height,width")
        return value

    @model_validator(mode="after")
    def _torch_compiles(self) -> Self:
        if self.compile and self.backend not in (None, "torch"):
            raise ValueError("--compile is for --backend torch")
        return self


class PoolConfig(RunConfig):
    """Options of every command that shares its work out among processes and machines."""

    workers: int = Field(1, ge=1, description="Processes that work on parts of the scenes at the same time.")
    engine: Literal["processes", "dask"] = Field("processes", description="What runs the workers: processes of this machine, or Dask.")
    scheduler: str | None = Field(None, description="Address of a Dask scheduler (default: a cluster of --workers on this machine).")
    scheduler_file: Path | None = Field(None, description="JSON file that a Dask scheduler wrote, in place of its address.")
    retries: int = Field(2, ge=0, description="Further attempts that a part gets when it fails for another reason than its input.")

    @property
    def scaled(self) -> bool:
        """Whether workers are asked for."""
        return self.workers > 1 or self.engine != "processes"

    @model_validator(mode="after")
    def _scheduler_of_dask(self) -> Self:
        if (self.scheduler or self.scheduler_file) and self.engine != "dask":
            raise ValueError("a scheduler needs --engine dask")
        return self


class ScaleConfig(PoolConfig, MapConfig):
    """Options of mapping on many processes and machines."""

    shard_size: int = Field(4096, ge=1, description="Side in pixels, about, of the shards that workers take.")
    shard: str | None = Field(None, description="Map this shard of each scene only: 3/8, or auto/8 in an array job; see rsdistill merge.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.shard is not None and self.scaled:
            raise ValueError("--shard maps one shard in this process; leave --workers and --engine out")
        if self.shard is not None and self.backend == "auto":
            raise ValueError("--shard with --backend auto: each task would choose for itself; name what --dry-run chooses")
        return self
