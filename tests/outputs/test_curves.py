from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsdistill.outputs.curves import curves_figure, draw_curves, read_log
from rsdistill.training.logs import RunLog


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log as training writes it: a term that is always 0, scores in some rows only."""
    path = tmp_path / "student.log.csv"
    written = RunLog(path, 10)
    for step in range(10, 101, 10):
        row = {"step": step, "seconds": step / 10, "lr": 1e-3, "loss": 300 / step, "ce": 1.0, "ce.weighted": 200 / step}
        row |= {"kd.weighted": 100 / step, "aux.weighted": 0.0}
        written.write(row | ({"miou": 0.5 if step < 80 else 0.4, "pixel_accuracy": 0.8} if step % 20 == 0 else {}))
    return path


def test_a_log_reads_back_with_nan_where_a_row_has_no_figure(log: Path) -> None:
    columns = read_log(log)
    assert columns["step"].tolist() == list(range(10, 101, 10))
    assert np.isnan(columns["miou"]).tolist() == [True, False] * 5


def test_what_is_drawn_are_the_loss_its_terms_and_the_scores(log: Path) -> None:
    loss, scores = curves_figure(read_log(log), "student").axes
    lines = {line.get_label(): line for line in loss.lines}
    assert set(lines) == {"loss", "ce", "kd"}
    assert lines["kd"].get_ydata().tolist() == pytest.approx([100 / step for step in range(10, 101, 10)], rel=1e-4)
    assert {line.get_label() for line in scores.lines} >= {"mIoU, best 50.0 %", "pixel accuracy, best 80.0 %"}


def test_the_ring_marks_the_last_of_equally_good_steps_as_training_keeps_it(log: Path) -> None:
    scores = curves_figure(read_log(log), "").axes[1]
    ring = next(line for line in scores.lines if line.get_markersize() > 8)
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([60], [50.0])


def test_the_loss_axis_is_logarithmic_only_where_it_has_to_be(log: Path) -> None:
    columns = read_log(log)
    assert curves_figure(columns, "").axes[0].get_yscale() == "linear"
    columns["ce.weighted"] = np.geomspace(100, 0.1, 10)
    assert curves_figure(columns, "").axes[0].get_yscale() == "log"
    columns["kd.weighted"] = -columns["ce.weighted"]
    assert curves_figure(columns, "").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("text", ["", "step,seconds,loss\n", "step,seconds,loss,miou\n1,0.1,2.5,\n", "step,loss,miou\n1,nan,nan\n"])
def test_a_short_log_is_drawn_too(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    draw_curves(log, tmp_path / "new" / "curves.png", "short")
    with rasterio.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.width > picture.height > 400
