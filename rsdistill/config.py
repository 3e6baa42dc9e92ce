"""Configuration: frozen models with one home for every default, read from TOML with flags on top, written beside every result."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rsdistill.errors import ConfigError, nearest

MAX_CONFIG_BYTES = 1 << 20
"""A configuration longer than this is refused unread."""


def argument(description: str, **field: Any) -> Any:
    """Return a field that the command line takes as positional argument instead of a flag."""
    return Field(description=description, json_schema_extra={"argument": True}, **field)


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise ValueError(f"unknown device '{name}': auto, cpu, cuda, cuda:1 or mps")
    return name


Device = Annotated[str, AfterValidator(_known_device)]
"""The name of a device; whether it is there is found out when it is used."""


class Config(BaseModel):
    """Base of every command's configuration: frozen, unknown keys refused with the nearest right one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Validate ``options``, where one value may stand for many.

        Raises:
            ConfigError: one line about the first that is wrong.
        """
        for name in options.keys() & cls.model_fields.keys():
            kind, value = cls.model_fields[name].annotation, options[name]
            if get_origin(kind) is tuple and isinstance(value, str | int | Path):
                options[name] = (value,)
            if get_origin(kind) is Literal:  # a number among choices comes from the command line as text
                options[name] = next((choice for choice in get_args(kind) if str(choice) == str(value)), value)
        try:
            return cls(**options)
        except ValidationError as error:
            raise _explain(error, cls) from None


class RunConfig(Config):
    """What every command that writes a result takes."""

    work: Path = Field(
        default_factory=lambda: Path(os.environ.get("RSDISTILL_WORK", "work")),
        description="Workspace folder: each command finds there what the one before it left (default work, or RSDISTILL_WORK).",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    overwrite: bool = Field(False, description="Replace results that already stand under these names.")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in the TOML file ``path``.

    Raises:
        ConfigError: the file is missing, longer than 1 MiB, or not TOML.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is longer than {MAX_CONFIG_BYTES} bytes", hint="a configuration is a short TOML file")
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="see docs/reference/configuration.md for an example") from None


def run_options(path: Path, command: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the run file ``path``, checked to be for ``command`` and to use ``known`` keys only.

    Raises:
        ConfigError: written for another command, or an unknown key (the nearest known one is named).
    """
    options = read_toml(path)
    written_for = options.pop("command", command)
    if written_for != command:
        hint = f"run rsdistill {written_for} --config {path}"
        raise ConfigError(f"{path} was written for 'rsdistill {written_for}', not '{command}'", hint=hint)
    for key in options:
        if key not in known:
            raise ConfigError(f"unknown key '{key}' in {path}{nearest(key, known)}", hint="known keys: " + ", ".join(sorted(known)))
    return options


def run_file(config: Config, command: str) -> str:
    """Return the TOML text that repeats a run: ``rsdistill COMMAND --config FILE``.

    What a person allowed once (to replace a result, to go on with a broken run) is not part of it.
    """
    import tomli_w

    values = config.model_dump(mode="json", exclude_none=True, exclude={"overwrite", "resume"})
    return tomli_w.dumps({"command": command, **values})


def _explain(error: ValidationError, config: type[Config]) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or config.__name__
    if first["type"] == "extra_forbidden":
        known = list(config.model_fields)
        return ConfigError(f"unknown option '{key}'{nearest(key, known)}", hint="known options: " + ", ".join(sorted(known)))
    if first["type"] == "missing":
        return ConfigError(f"'{key}' is missing", hint=config.model_fields[key].description or "give it a value")
    given = repr(first.get("input"))
    message = first["msg"].removeprefix("Value error, ")
    shown = given if len(given) <= 80 else given[:77] + "..."
    field = config.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    return ConfigError(f"{key}: {message} (got {shown})", hint=(field.description if field else None) or "see --help")
