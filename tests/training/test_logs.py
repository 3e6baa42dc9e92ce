"""The log of a run is a whole CSV at any moment."""

import csv

import pytest

from rsdistill.errors import MissingExtraError
from rsdistill.training import logs
from rsdistill.training.logs import RunLog


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_may_have_different_columns(tmp_path):
    log = RunLog(tmp_path / "teacher.log.csv", 10)
    log.write({"step": 10, "loss": 2.0})
    log.write({"step": 20, "loss": 1.0, "miou": 0.25})
    assert rows_of(log.path) == [{"step": "10", "loss": "2", "miou": ""}, {"step": "20", "loss": "1", "miou": "0.25"}]


def test_a_restored_log_goes_on_from_its_rows(tmp_path):
    log = RunLog(tmp_path / "teacher.log.csv", 10)
    log.restore([{"step": 10, "loss": 2.0}])
    log.write({"step": 20, "loss": 1.0})
    assert [row["step"] for row in rows_of(log.path)] == ["10", "20"]


def test_tensorboard_events_stand_beside_the_model(tmp_path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path / "teacher.log.csv", 10, tensorboard=True)
    log.write({"step": 10, "loss": 2.0})
    assert any(path.name.startswith("events.out") for path in (tmp_path / "teacher.events").iterdir())


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    def absent(*_args, **_kwargs):
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr("lightning_fabric.loggers.tensorboard.TensorBoardLogger", absent)
    with pytest.raises(MissingExtraError) as caught:
        logs.RunLog(tmp_path / "teacher.log.csv", 10, tensorboard=True)
    assert "rsdistill[tensorboard]" in caught.value.hint
