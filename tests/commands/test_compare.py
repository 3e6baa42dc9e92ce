"""``compare``: equal budgets, both baselines always, nothing run twice."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rsdistill.commands.compare import compare
from rsdistill.commands.tile import tile
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.errors import ConfigError, RsdistillError, TileSetError
from rsdistill.geo.synthetic import write_land_cover

QUICK = {"steps": 2, "batch": 4, "threads": 1, "seeds": 1, "student": "linear"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a workspace with tiles and a linear teacher."""
    folder = tmp_path_factory.mktemp("compare")
    drawn = write_land_cover(folder, size=384, seed=3)
    tile(scenes=drawn.scene, labels=drawn.labels, classes=drawn.classes, work=folder / "work", tile=64)
    train_teacher(work=folder / "work", arch="linear", steps=2, batch=4)
    return folder / "work"


def test_one_budget_holds_both_baselines_and_the_second_call_runs_nothing(work, tmp_path):
    how = {"work": work, "out": tmp_path / "c", "methods": "kd", "budget": "steps"} | QUICK
    result = compare(**how)
    assert set(result.data["budgets"]) == {"steps"}
    assert {(run["method"], run["steps"], run["peak_mb"] > 100) for run in result.data["runs"]} == {("ce", 2, True), ("kd", 2, True)}
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "runs").glob("*.safetensors")}
    assert len(models) == 4  # 2 methods, the best and the last
    again = compare(**how)
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert again.data["budgets"] == result.data["budgets"]


@pytest.mark.slow
def test_both_budgets_hold_every_method(work):
    result = compare(work=work, methods="kd", set={"kd.tau": 2}, **QUICK)
    data = json.loads((work / "compare" / "comparison.json").read_text())
    assert set(data["budgets"]) == {"steps", "seconds"}
    for rows in data["budgets"].values():
        assert {row["method"] for row in rows} == {"ce", "kd"}
        assert all(row["runs"] == 1 for row in rows)
    assert all(run["steps"] == 2 for run in data["runs"] if run["budget"] == "steps")
    allowed = next(run["seconds"] for run in data["runs"] if run["method"] == "kd")
    assert all(run["seconds"] >= allowed for run in data["runs"] if run["budget"] == "seconds")
    assert all(run["peak_mb"] > 100 for run in data["runs"])
    assert {path.name for path in result.paths} == {"comparison.json", "comparison.md", "comparison.png", "report.html"}
    page = (work / "compare" / "report.html").read_text()
    assert 'href="runs/kd.steps.0.evaluation/report.html"' in page
    assert (work / "compare" / "runs" / "kd.steps.0.evaluation" / "report.html").exists()
    assert len(list((work / "compare" / "runs").glob("*.safetensors"))) == 8  # 2 methods, 2 budgets, the best and the last


@pytest.mark.slow
def test_runs_on_two_devices_are_those_on_one(work, tmp_path):
    """Weights are compared, not scores: after two steps from zero, all classes are still nearly equal."""
    how = {"work": work, "budget": "steps", "methods": "ce", "device": "cpu"} | QUICK
    one, two = (compare(out=tmp_path / f"{devices}", devices=devices, **how).data["runs"] for devices in (1, 2))
    assert [(run["method"], run["steps"]) for run in one] == [(run["method"], run["steps"]) for run in two]
    assert all(run["peak_mb"] > 100 for run in two)
    for method in ("ce", "kd"):
        alone, together = (load_file(tmp_path / f"{devices}" / "runs" / f"{method}.steps.0.last.safetensors") for devices in (1, 2))
        assert all(torch.allclose(alone[name], together[name], rtol=0, atol=1e-6) for name in alone)
    with pytest.raises(RsdistillError, match="a step of 4 tiles does not divide among 3 devices") as caught:
        compare(out=tmp_path / "3", devices=3, **how)
    assert caught.value.exit_code == 2


def test_seconds_alone_need_a_number(work):
    with pytest.raises(ConfigError, match="--max-seconds"):
        compare(work=work, budget="seconds", **QUICK)


def test_an_unknown_method_is_refused_before_anything_runs(work, tmp_path):
    with pytest.raises(ConfigError, match="unknown method 'kdd'"):
        compare(work=work, methods="kdd", out=tmp_path / "c", **QUICK)
    assert not (tmp_path / "c").exists()


def test_no_tile_set_is_said(tmp_path):
    with pytest.raises(TileSetError):
        compare(work=tmp_path, **QUICK)
