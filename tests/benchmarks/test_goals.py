"""The goals, on the machine that runs this: each line of ``rsdistill bench`` is printed, and those that do not depend on load are held."""

import json

import pytest

from rsdistill.commands.bench import LINES, bench

pytestmark = pytest.mark.benchmark
STEADY = ("P2", "P4", "P7", "V2")
"""Counts, bytes and shares; times on a shared machine are told and not judged."""


@pytest.mark.parametrize("line", LINES)
def test_goal(line, tmp_path):
    result = bench(only=(line,), rounds=3, out=tmp_path / "bench.json")
    (row,) = result.tables[0].rows
    print(" | ".join(row))
    (found,) = json.loads((tmp_path / "bench.json").read_text())["lines"]
    assert found["found"] == row[3]
    if line in STEADY:
        assert found["met"], row
