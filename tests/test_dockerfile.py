"""The Dockerfile, as far as it can be held to the tree without building it: everything that it names exists."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{name} ")]


@pytest.fixture
def copied() -> list[str]:
    return [source for line in instructions("COPY") for source in shlex.split(line)[:-1]]


def test_what_is_copied_exists_and_is_what_the_build_needs(copied: list[str]) -> None:
    assert all((ROOT / source).exists() for source in copied)
    assert {"pyproject.toml", "rsdistill", PROJECT["readme"], *PROJECT["license-files"]} <= set(copied)


def test_what_is_installed_is_declared(copied: list[str]) -> None:
    (line,) = [line for line in instructions("RUN") if line.startswith("pip install")]
    extras = re.search(r"\.\[([\w,]+)\]", line)
    assert extras
    assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    assert re.search(r"--constraint (\S+)", line)[1] in copied  # type: ignore[index]


def test_python_is_one_that_the_package_takes() -> None:
    (image,) = instructions("FROM")
    assert re.search(r":(3\.\d+)-slim$", image)[1] in SpecifierSet(PROJECT["requires-python"])  # type: ignore[index]


def test_it_starts_the_command_and_not_as_root() -> None:
    (entry,), (user,) = instructions("ENTRYPOINT"), instructions("USER")
    assert entry == '["rsdistill"]'
    assert "rsdistill" in PROJECT["scripts"]
    assert any(line.startswith("useradd ") and line.endswith(f" {user}") for line in instructions("RUN"))
    order = [line.split()[0] for line in LINES if line and not line.startswith("#")]
    assert order.index("USER") > max(k for k, name in enumerate(order) if name == "RUN")


def test_little_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored[1:] if line.startswith("!")} == {
        source for line in instructions("COPY") for source in shlex.split(line)[:-1]
    }
