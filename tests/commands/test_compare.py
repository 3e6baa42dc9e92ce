"""``compare``: equal budgets, both baselines always, nothing run twice."""

import json

import pytest

from rsdistill.commands.compare import compare
from rsdistill.commands.tile import tile
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.errors import ConfigError, TileSetError
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


def test_both_budgets_hold_every_method_and_the_second_call_runs_nothing(work):
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
    models = {path: path.stat().st_mtime_ns for path in (work / "compare" / "runs").glob("*.safetensors")}
    assert len(models) == 8  # 2 methods, 2 budgets, the best and the last
    again = compare(work=work, methods="kd", set={"kd.tau": 2}, **QUICK)
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert again.data["budgets"] == result.data["budgets"]


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
