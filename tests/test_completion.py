"""Shell completion as a shell asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsdistill import cli
from rsdistill.methods import METHODS

CLASSES = '[[class]]\nid = 1\nname = "building"\ncolor = "#ff0000"\n\n[[class]]\nid = 2\nname = "water"\ncolor = "#0000ff"\n'


def completed(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash offers at the end of ``line``."""
    monkeypatch.setenv("_RSDISTILL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    with pytest.raises(SystemExit):
        cli.run([])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("rsdistill tr", ["train-teacher"]),
        ("rsdistill distill --stu", ["--student"]),
        ("rsdistill distill --method m", ["mgsad", "mgd"]),
        ("rsdistill distill --method kd+i", ["kd+ifvd", "kd+idd"]),
        ("rsdistill distill --student s", ["segformer", "small"]),
        ("rsdistill compare --methods ce,cw", ["ce,cwd"]),
        ("rsdistill tile --dataset p", ["potsdam"]),
        ("rsdistill tile --dataset inria --protocol ", ["official", "glnet", "lists"]),
        ("rsdistill distill --optimizer s", ["sgd"]),
        ("rsdistill tile --burn ", ["building", "water"]),
        ("rsdistill tile --classes other.toml --burn w", []),
        ("rsdistill predict a.tif --model t", ["teacher"]),
        ("rsdistill predict a.tif --work elsewhere --model t", []),
    ],
)
def test_names_are_offered(line, offered, tmp_path, monkeypatch, capsys):
    (tmp_path / "classes.toml").write_text(CLASSES)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "teacher.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSDISTILL_WORK", raising=False)
    assert completed(line, monkeypatch, capsys) == offered


def test_every_method_is_offered_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys; from rsdistill import cli\ntry:\n cli.run([])\nfinally:\n sys.stderr.write(str('torch' in sys.modules))"
    asked = {"_RSDISTILL_COMPLETE": "complete_bash", "COMP_WORDS": "rsdistill distill --method ", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split() == list(METHODS)
    assert done.stderr == "False"
