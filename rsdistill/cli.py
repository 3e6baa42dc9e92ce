"""The command line: parse, call, print; the only place that knows typer.

Every command's flags are made from the fields of its configuration class, so a default, a description and a check have one home. Values
reach that class as text; what is wrong with them is said in the same one line whether it came from a flag, a TOML file or Python.
"""

import atexit
import errno
import gc
import inspect
import json
import os
import re
import shlex
import signal
import sys
import types
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

import rsdistill
from rsdistill.completion import completer
from rsdistill.config import Config, run_options
from rsdistill.errors import DiskError, InputError, MemoryLimitError, RsdistillError
from rsdistill.reporting import Result
from rsdistill.terminal import draw, draw_traceback, shown
from rsdistill.training.interrupts import SIGNALS

GARBAGE = 50_000
"""Objects made before cycles are searched for. With Python's 700, a fifth of the time that torch takes to load goes into such searches."""
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}


UsageError: type[Exception] = typer.BadParameter.__mro__[1]
ClickException: type[Exception] = typer.BadParameter.__mro__[2]
"""The errors of click's parser, from click itself or from the copy that newer versions of typer carry."""


INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class StoppedError(Exception):
    """A running command was interrupted; the parser of the command line would make one code of all interruptions."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived; what is running saves its state as it does for Ctrl-C."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _stop)
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as the bytes that it is
    gc.set_threshold(GARBAGE)
    code = run(sys.argv[1:])
    _hear_no_more()
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End this process after all that was to be done at its end, but leave what it has loaded where it is.

    Taking torch and its company apart, object by object, takes longer than many a command.
    """
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)  # the interpreter tells of streams that take no more
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line on ``arguments`` and return the exit code; errors become one line on stderr."""
    verbose = any(argument == "-v" or argument == "--verbose" for argument in arguments)
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("CPL_LOG", os.devnull)  # what GDAL writes to stderr by itself; its errors reach us all the same
    try:
        return int(application()(args=arguments, prog_name="rsdistill", standalone_mode=False) or 0)
    except ClickException as error:
        return _usage(error)
    except StoppedError as stop:
        return _refuse("terminated" if stop.code == TERMINATED else "interrupted", _again(arguments), stop.code)
    except (KeyboardInterrupt, typer.Abort):
        return _refuse("interrupted", "before anything was begun", INTERRUPTED)
    except Exception as error:
        if verbose:
            draw_traceback()
        return _explain(error)


def application() -> typer.Typer:
    """Return the typer application with every command of :data:`rsdistill.COMMANDS`."""
    app = typer.Typer(
        name="rsdistill",
        help="Segment very large scenes on small machines: tile, train-teacher, distill, predict.",
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def version(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
        ] = False,
    ) -> None:
        pass

    for name in rsdistill.COMMANDS:
        call = _command(name)
        app.command(name.replace("_", "-"), short_help=(call.__doc__ or "").split(". ")[0].split(".\n")[0])(call)
    return app


def config_of(name: str) -> type[Config]:
    """Return the configuration class of the command ``name``."""
    module = import_module(f"rsdistill.commands.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")) + "Config")


def _command(name: str) -> Callable[..., int]:
    """Return the function that typer calls for the command ``name``: one parameter a field of its configuration."""
    config = config_of(name)
    function = getattr(import_module(f"rsdistill.commands.{name}"), name)
    help_text = inspect.cleandoc(function.__doc__ or "").split("\nArgs:")[0].split("\nRaises:")[0].strip()

    def call(**given: Any) -> int:
        as_json, quiet, run_path = given.pop("json"), given.pop("quiet"), given.pop("config")
        given.pop("verbose")
        options = run_options(run_path, name, config.model_fields) if run_path else {}
        options |= {key: _untangle(config.model_fields[key], value) for key, value in given.items() if value not in (None, [], ())}
        config.of(**options)
        try:
            with shown(quiet) as progress:
                result = function(**options, progress=progress)
        except KeyboardInterrupt as error:
            raise StoppedError(TERMINATED if isinstance(error, Terminated) else INTERRUPTED) from None
        return _print(result, as_json=as_json, quiet=quiet)

    parameters = [_parameter(key, field) for key, field in config.model_fields.items()]
    parameters += [
        _option("config", Path | None, None, typer.Option("--config", metavar="FILE", help="TOML file of options; flags win over it.")),
        _option("json", bool, False, typer.Option("--json", help="Print the result as JSON instead of paths.")),
        _option("quiet", bool, False, typer.Option("-q", "--quiet", help="No progress, no messages.")),
        _option("verbose", bool, False, typer.Option("-v", "--verbose", help="Show warnings and tracebacks.")),
    ]
    parameters.sort(key=lambda parameter: "OptionInfo" in type(get_args(parameter.annotation)[1]).__name__)
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = help_text
    return call


def _option(name: str, annotation: Any, default: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info])


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the command-line parameter of one configuration field; its value stays text until the configuration checks it."""
    kind, many = _kind(field)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    choices = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
    help_text = (field.description or "") + _shown_default(field)
    metavar = "|".join(choices) or {int: "INTEGER", float: "NUMBER", Path: "PATH", dict: "KEY=VALUE"}.get(kind, "TEXT")
    completion = completer(name, choices)
    if extra.get("argument"):
        info = typer.Argument(help=help_text, metavar=name.upper() + ("..." if many else ""), autocompletion=completion, show_default=False)
        return _option(name, list[str] | None if many else str | None, None, info)
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        return _option(name, bool | None, None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, show_default=False))
    option = typer.Option(flag, help=help_text, metavar=metavar, autocompletion=completion, show_default=False)
    return _option(name, list[str] | None if many or kind is dict else str | None, None, option)


def _kind(field: FieldInfo) -> tuple[Any, bool]:
    """Return (the field's type without None and without tuple, whether it takes many values)."""
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is tuple:
        return get_args(kind)[0], True
    if get_origin(kind) is dict:
        return dict, False
    return kind, False


def _shown_default(field: FieldInfo) -> str:
    if field.default in (None, (), False) or field.is_required() or field.default_factory or field.default == "":
        return ""
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f" [default: {default}]"


def _untangle(field: FieldInfo, value: Any) -> Any:
    """Split what a person types in one word: ``4,3,2`` for many values (paths excepted), ``key=value`` for a table."""
    kind, many = _kind(field)
    if kind is dict:
        pairs = [item.partition("=") for item in value]
        for key, equals, _ in pairs:
            if not equals:
                raise typer.BadParameter(f"'{key}' is not KEY=VALUE")
        return {key: text for key, _, text in pairs}
    if many and kind is not Path and isinstance(value, list):
        return [part.strip() for item in value for part in str(item).split(",") if part.strip()]
    return value


def _print(result: Result, *, as_json: bool, quiet: bool) -> int:
    """Print paths, JSON, or tables that are the result on stdout, all else on stderr; return 0, 6 after failures, 2 if nothing was done."""
    for failure in result.failures:
        typer.echo(f"failed: {failure}", err=True)
    lines = [str(path) for path in result.paths]
    if as_json:
        lines = [json.dumps({"paths": lines, "failures": list(result.failures), **result.data}, indent=2, default=str)]
    try:
        for table in result.tables if result.told and not as_json else ():
            draw(table, sys.stdout)
        for line in lines:
            typer.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has had enough; the result stands
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for table in () if quiet or result.told else result.tables:
        draw(table, sys.stderr)
    if result.failures:
        return 6 if result.paths or result.kept else InputError.exit_code
    return 0


def _refuse(message: str, hint: str, code: int) -> int:
    """Print one line, whatever a library or a file's name put into it, and return ``code``."""
    line = re.sub(r"\s*[\r\n]\s*", " ", f"rsdistill: {message}" + (f" ({hint})" if hint else ""))
    typer.echo("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line), err=True)
    return code


def _again(arguments: list[str]) -> str:
    """Return the line that takes up an interrupted command, or starts it anew where it keeps nothing."""
    resumable = "resume" in config_of(arguments[0].replace("-", "_")).model_fields
    more = ["--resume"] if resumable and "--resume" not in arguments else []
    return ("go on with: " if resumable else "nothing was kept; start it again: ") + shlex.join(["rsdistill", *arguments, *more])


def _usage(error: Any) -> int:
    """Print what is wrong with the words of a command line; a bare ``rsdistill`` gets the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return 2
    hint = f"see {error.ctx.command_path} --help" if getattr(error, "ctx", None) else ""
    return _refuse(error.format_message(), hint, 2)


def _explain(error: Exception) -> int:
    """Print one line about ``error`` and return its exit code; what no part of the program foresaw is a bug, code 1."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        error = InputError(f"{error.filename or 'a name'} is too long for this disk", hint="use a shorter name")
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        error = DiskError(f"{error.strerror}: {error.filename or 'a file'}", hint="check free space and permissions")
    if isinstance(error, MemoryError):
        error = MemoryLimitError("out of memory", hint="use a smaller --tile or --batch")
    if isinstance(error, RsdistillError):
        return _refuse(str(error), error.hint, error.exit_code)
    return _refuse(f"internal error: {type(error).__name__}: {error}", "this is a bug; -v shows where", 1)


def _stop(number: int, _frame: types.FrameType | None) -> None:
    """End what is running, once: timeout(1) and closing terminals send two signals, and the second must not tear what the first saves."""
    _hear_no_more()
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _hear_no_more() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(rsdistill.__version__)
        raise typer.Exit
