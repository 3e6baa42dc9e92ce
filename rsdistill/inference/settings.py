"""How a model maps scenes: the options of every command that does (nothing heavy here)."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from rsdistill.config import RunConfig


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
    batch: int | None = Field(None, ge=1, description="Windows that pass the network at once (default 2, on an accelerator 16).")
    blend: Literal["core", "hann", "gaussian"] = Field(
        "core", description="Each pixel from the one window that owns it, or averaged over all that see it with these weights."
    )
    tta: Literal["none", "d4"] = Field("none", description="Average over turned and mirrored windows: d4 takes eight times as long.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    precision: Literal["float32", "bf16", "fp16"] = Field("float32", description="Arithmetic of the network.")
    threads: int | None = Field(None, ge=1, description="Threads of the network (default: all cores).")

    @field_validator("window", mode="before")
    @classmethod
    def _four_numbers(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) != 4:
            raise ValueError("four numbers are needed: row,col,height,width")
        return value
