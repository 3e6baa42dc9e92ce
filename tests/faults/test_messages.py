"""Every message of every error: read from the source, it names what it is about and what to do next."""

import ast
from pathlib import Path

import pytest

import rsdistill.errors
from rsdistill.errors import RsdistillError

PACKAGE = Path(rsdistill.errors.__file__).parent
KINDS = {name for name, kind in vars(rsdistill.errors).items() if isinstance(kind, type) and issubclass(kind, RsdistillError)}
ABOUT_NO_FILE = {
    "out of memory",
    "no scene was named",
    "there are neither labels nor a class table",
    "this is no task of an array job",
    "a network that reads the scene's context is not compiled",
    "this network needs the scene's context",
    "kd.js compares the teacher with its auxiliary head, and this teacher has none",
    "polygons are written through pyarrow, which is not installed",
    "out of memory on one of several devices",
    "one process can train on several devices once",
    "another process of this run ended or fell silent",
    "a mask is a GeoTIFF",
}
"""Sentences about the command or the machine as a whole; each was read, and its hint says what to do."""


def made(tree):
    """Yield every call that makes one of our errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in KINDS:
                yield node


SITES = [
    pytest.param(node, id=f"{path.relative_to(PACKAGE)}:{node.lineno}")
    for path in sorted(PACKAGE.rglob("*.py"))
    for node in made(ast.parse(path.read_text(encoding="utf-8")))
]


def text_of(node):
    """The constant parts of an expression that makes a text, joined."""
    return "".join(part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))


def test_all_of_them_are_read():
    assert len(SITES) > 250
    assert {node.values[0].func.id for node in SITES if isinstance(node.values[0].func, ast.Name)} > KINDS - {
        "InputError", "MachineError", "PartialFailureError", "RsdistillError"
    }  # fmt: skip


@pytest.mark.parametrize("node", SITES)
def test_a_message_names_something_and_a_next_step(node):
    hint = {keyword.arg: keyword.value for keyword in node.keywords}.get("hint")
    assert hint is not None, "no next step"
    assert not isinstance(hint, ast.Constant) or hint.value, "an empty hint"
    message = node.args[0]
    assert "\n" not in text_of(message), "more than one line"
    if isinstance(message, ast.Constant):  # else it holds what was found: a path, a number, a name
        assert "--" in message.value or message.value in ABOUT_NO_FILE, "it names neither a file nor an option"


def test_nothing_else_ends_a_command():
    """No part of the library leaves by itself, or raises on purpose what the command line takes for a bug."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                assert getattr(node.exc.func, "id", "") not in {"Exception", "SystemExit", "AssertionError"}, (path, node.lineno)
