"""The comparison of methods: statistics by hand, a table, a picture."""

import re
from math import isnan, sqrt

import pytest
from matplotlib.collections import PathCollection

from rsdistill.outputs.comparison import comparison_figure, draw_comparison, markdown, paired, summarise, write_comparison


def run(method, seed, miou, ms=100.0):
    costs = {"ms_per_step": ms, "peak_mb": 900.0, "seconds": 30.0, "steps": 300}
    return {"method": method, "seed": seed, "budget": "steps", "miou": miou, "pixel_accuracy": 0.8, "boundary_iou": 0.2, **costs}


RUNS = [
    *(run("ce", seed, miou) for seed, miou in enumerate((0.30, 0.32, 0.34))),
    *(run("kd", seed, miou, 180.0) for seed, miou in enumerate((0.33, 0.34, 0.38))),
]


def test_differences_are_paired_by_seed_with_students_interval():
    rows = {row["method"]: row for row in summarise(RUNS)}
    kd = rows["kd"]
    assert kd["miou"] == pytest.approx(0.35)
    assert kd["miou_sd"] == pytest.approx(sqrt((0.02**2 + 0.01**2 + 0.03**2) / 2))
    assert kd["to_ce"] == pytest.approx(0.03)
    # differences 0.03, 0.02, 0.04: standard deviation 0.01; t(0.975, 2) = 4.302653
    assert kd["to_ce_interval"] == pytest.approx(4.302653 * 0.01 / sqrt(3), rel=1e-6)
    assert rows["ce"]["to_ce"] == 0


def test_the_best_comes_first():
    assert [row["method"] for row in summarise(RUNS)] == ["kd", "ce"]


def test_one_pair_has_no_interval():
    mean, interval = paired([0.5])
    assert mean == 0.5
    assert isnan(interval)
    assert isnan(paired([])[0])


def test_markdown_has_a_table_for_each_budget():
    text = markdown({"budgets": {"steps": summarise(RUNS), "seconds": summarise(RUNS[:1])}})
    assert "### Equal steps" in text
    assert "| kd | 35.0 ± 2.6 |" in text
    assert "+3.0 ± 2.5" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_the_picture_is_a_png(tmp_path):
    draw_comparison({"budgets": {"steps": summarise(RUNS)}}, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_names_every_method_once_and_shows_every_run():
    many = [run(f"m{k}", seed, 0.3 + 0.001 * k + 0.01 * seed) for k in range(11) for seed in range(3)]
    (panel,) = comparison_figure({"budgets": {"steps": summarise(many)}, "runs": many}).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [f"m{k}" for k in reversed(range(11))]
    rings = sorted(x for shown in panel.collections if isinstance(shown, PathCollection) for x, _ in shown.get_offsets().tolist())
    assert rings == pytest.approx(sorted(100 * one["miou"] for one in many))


def test_the_page_is_whole_and_shows_each_class_and_run(tmp_path):
    runs = [
        one | {"per_class": {"<field>": one["miou"], "none": None}, "report": f"runs/{one['method']}.{one['seed']}/report.html"}
        for one in RUNS
    ]
    there = tmp_path / runs[0]["report"]
    there.parent.mkdir(parents=True)
    there.touch()
    write_comparison({"budgets": {"steps": summarise(runs)}, "runs": runs}, tmp_path / "report.html", [("rsdistill compare", "seeds = 3")])
    text = (tmp_path / "report.html").read_text()
    assert "&lt;field&gt;" in text
    assert "<field>" not in text
    assert text.count("<a href=") == 1
    outside = re.sub(r"data:[a-z/+]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import|<script", outside)
    shown = " ".join(re.sub(r"<[^>]+>", " ", outside).split())
    assert "kd 35.0 ± 2.6 +3.0 ± 2.5 80.0 20.0 300 180" in shown
    assert "kd 35.0 –" in shown
