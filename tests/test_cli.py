"""The command line as a person meets it: a subprocess, its exit code, what stands on stdout and on stderr."""

import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

import rsdistill
from rsdistill import cli
from rsdistill.config import Config, argument
from rsdistill.errors import ConfigError, DiskError, DivergedError, SceneError
from rsdistill.reporting import Result, Table


def rsdistill_process(*arguments, cwd=None, env=None):
    return subprocess.run(
        [sys.executable, "-m", "rsdistill", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | (env or {}),
        timeout=120,
        check=False,
    )


def test_help_names_every_command_and_costs_less_than_600_ms_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = rsdistill_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0
    assert all(name.replace("_", "-") in shown.stdout for name in rsdistill.COMMANDS)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


@pytest.mark.parametrize("heavy", ["torch", "torchgeo", "rasterio", "numpy", "geopandas", "timm"])
def test_building_the_command_line_imports_nothing_heavy(heavy):
    code = f"import sys; from rsdistill.cli import application; application(); sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", rsdistill.COMMANDS)
def test_every_command_says_what_its_result_is(name, capsys):
    assert cli.run([name.replace("_", "-"), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The result is" in shown or "The results are" in shown
    assert "--json" in shown
    assert "--config" in shown


@pytest.mark.parametrize("name", rsdistill.COMMANDS)
def test_every_command_is_a_function_of_the_package_with_a_configuration(name):
    assert callable(getattr(rsdistill, name))
    assert issubclass(cli.config_of(name), Config)
    assert all(field.description for field in cli.config_of(name).model_fields.values())


def test_version():
    shown = rsdistill_process("--version")
    assert (shown.returncode, shown.stdout.strip()) == (0, rsdistill.__version__)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["til"], "til"),
        (["tile", "--tiel", "256"], "--tiel"),
        (["train-teacher", "--steps", "many"], "steps"),
        (["train-teacher", "--steps", "0"], "steps"),
        (["train-teacher", "--optimizer", "lion"], "optimizer"),
        (["distill", "--set", "tau"], "KEY=VALUE"),
        (["train-teacher", "--tiles", "/nowhere/at all"], "/nowhere/at all"),
        (["predict"], "scenes"),
    ],
)
def test_bad_usage_is_one_line_with_a_hint_and_code_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert says in captured.err
    assert captured.err.rstrip().endswith(")")
    assert list(tmp_path.iterdir()) == []


class EchoConfig(Config):
    """Options of a command that exists in this test only."""

    words: tuple[str, ...] = argument("Words.", default=())
    loud: bool = Field(False, description="Say it loudly.")
    bands: tuple[int, ...] = Field((), description="Numbers.")
    fail: str = Field("", description="How to fail.")
    views: Literal[1, 8] = Field(1, description="A number among few.")
    told: bool = Field(False, description="Tables are the result.")


FAULTS = {
    "scene": SceneError("scene.tif is empty", hint="copy it again"),
    "disk": DiskError("no space left", hint="free some"),
    "diverged": DivergedError("loss is nan", hint="use a smaller --lr"),
    "enospc": OSError(28, "No space left on device", "mask.tif"),
    "memory": MemoryError(),
    "bug": ZeroDivisionError("division\nby zero"),
    "interrupt": KeyboardInterrupt(),
}


@pytest.fixture
def echo(monkeypatch):
    """Install a command ``echo`` that gives its options back."""
    import types

    def echo(*, progress, **options):
        """Give the options back. The result is what was said."""
        config = EchoConfig.of(**options)
        if config.fail in FAULTS:
            raise FAULTS[config.fail]
        progress.message("working")
        failures = ("b.tif: broken",) if config.fail == "some" else ()
        tables = (Table("words", ("word", "length"), tuple((w, str(len(w))) for w in config.words)),)
        return Result(
            paths=(*config.words, *(["a.tif"] if failures else [])),
            data={"bands": list(config.bands), "loud": config.loud},
            tables=tables,
            failures=failures,
            told=config.told,
        )

    module = types.ModuleType("rsdistill.commands.echo")
    module.EchoConfig, module.echo = EchoConfig, echo
    monkeypatch.setitem(sys.modules, "rsdistill.commands.echo", module)
    monkeypatch.setattr(rsdistill, "COMMANDS", ("echo", "info"))


def test_paths_go_to_stdout_one_a_line_and_everything_else_to_stderr(echo, capsys):
    assert cli.run(["echo", "a.tif", "b.tif", "--bands", "4,3", "--bands", "2", "--loud"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a.tif\nb.tif\n"
    assert "working" in captured.err
    assert "length" in captured.err


def test_json_holds_paths_and_data(echo, capsys):
    assert cli.run(["echo", "a.tif", "--bands", "4,3", "--bands", "2", "--loud", "--json", "-q"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"paths": ["a.tif"], "failures": [], "bands": [4, 3, 2], "loud": True}
    assert captured.err == ""


def test_flags_win_over_the_configuration_file(echo, capsys, tmp_path):
    run = tmp_path / "echo.run.toml"
    run.write_text('command = "echo"\nwords = ["from file"]\nbands = [1]\nloud = true\n')
    assert cli.run(["echo", "--config", str(run), "--bands", "7", "--no-loud", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"paths": ["from file"], "failures": [], "bands": [7], "loud": False}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("bnads = [1]", "unknown key 'bnads' in"),
        ('command = "tile"', "written for 'rsdistill tile'"),
        ("bands = ", "is not TOML"),
        ('bands = ["x"]', "bands.0"),
    ],
)
def test_a_bad_configuration_file_is_one_line(echo, capsys, tmp_path, content, says):
    run = tmp_path / "run.toml"
    run.write_text(content)
    assert cli.run(["echo", "--config", str(run)]) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1
    if "bnads" in says:
        assert "did you mean 'bands'?" in line


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("scene", 2, "scene.tif is empty (copy it again)"),
        ("disk", 3, "no space left"),
        ("diverged", 4, "loss is nan"),
        ("enospc", 3, "No space left on device: mask.tif"),
        ("memory", 3, "out of memory"),
        ("bug", 1, "internal error: ZeroDivisionError: division by zero"),
        ("some", 6, "failed: b.tif: broken"),
        ("interrupt", 130, "interrupted"),
    ],
)
def test_every_fault_has_its_code_and_one_line(echo, capsys, fault, code, says):
    assert cli.run(["echo", "--fail", fault, "-q"]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


SIGNALLED = """
import signal, sys
from rsdistill import cli
from rsdistill.commands import info

def signalled(**options):
    try:
        signal.raise_signal(number)
    finally:
        signal.raise_signal(number)
        print("tidied up", flush=True)

info.info, number = signalled, int(sys.argv.pop(1))
cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_second_signal_tears_nothing_that_the_first_one_ends(number, code):
    """As timeout(1) sends them, which signals a process and then its group."""
    given = [sys.executable, "-c", SIGNALLED, str(int(number)), "info", "a.tif"]
    run = subprocess.run(given, capture_output=True, text=True, check=False, timeout=120, preexec_fn=restored)
    assert (run.returncode, run.stdout) == (code, "tidied up\n"), run.stderr
    assert run.stderr.count("\n") == 1


def restored():
    """Hear signals also where the tests run under nohup or in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_verbose_shows_the_traceback(echo, capsys):
    assert cli.run(["echo", "--fail", "bug", "-v"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_run_file_repeats_a_run(tmp_path):
    from rsdistill.config import run_file

    config = EchoConfig.of(words=["a b", "é"], bands=[3], loud=True)
    written = tomllib.loads(run_file(config, "echo"))
    assert written.pop("command") == "echo"
    assert EchoConfig.of(**written) == config


def test_one_value_may_stand_for_many_in_python():
    assert EchoConfig.of(words="one").words == ("one",)
    assert EchoConfig.of(bands=3).bands == (3,)


def test_tables_that_are_the_result_go_to_stdout_whole(echo, capsys):
    long = "x" * 300
    assert cli.run(["echo", long, "b", "--told", "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["words", f"  {'word':300}  length", f"  {long}     300", f"  {'b':300}       1", long, "b"]
    assert captured.err == ""


def test_a_number_among_choices_may_come_as_text():
    assert EchoConfig.of(views="8").views == 8
    with pytest.raises(ConfigError, match="views"):
        EchoConfig.of(views="2")


@pytest.mark.parametrize(("paths", "code"), [((), 2), ((Path("a.tif"),), 6)])
def test_inputs_that_all_failed_are_bad_input(capsys, paths, code):
    assert cli._print(Result(paths=paths, failures=("b.tif is empty",)), as_json=False, quiet=True) == code
    assert "failed: b.tif is empty" in capsys.readouterr().err


def test_what_was_to_be_done_at_the_end_is_done():
    """The command line leaves without taking its libraries apart, not without tidying up."""
    code = "import atexit; atexit.register(print, 'tidied up'); from rsdistill import cli; cli.main()"
    run = subprocess.run([sys.executable, "-c", code, "nothing"], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stdout) == (2, "tidied up\n"), run.stderr
