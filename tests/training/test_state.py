"""The saved state of a run: for the run that wrote it only, and never trusted."""

import pickle
import resource

import pytest
import torch

from rsdistill.errors import DiskError
from rsdistill.reporting import Silent
from rsdistill.training.settings import TrainingConfig
from rsdistill.training.state import fingerprint, load_state, save_state


class Heard(Silent):
    def __init__(self):
        self.said, self.warned = [], []

    def message(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)


def test_a_state_comes_back_as_it_was(tmp_path):
    path = tmp_path / "student.state.pt"
    state = {"step": 7, "weights": {"a": torch.arange(3.0)}, "log": [{"loss": 0.5}]}
    save_state(path, state, "mark")
    found = load_state(path, "mark", Heard())
    assert found["step"] == 7
    assert found["log"] == [{"loss": 0.5}]
    torch.testing.assert_close(found["weights"]["a"], torch.arange(3.0))
    assert [each.name for each in tmp_path.iterdir()] == ["student.state.pt"]


def test_the_state_of_another_run_is_not_used(tmp_path):
    path, heard = tmp_path / "state.pt", Heard()
    save_state(path, {"step": 7}, "mark")
    assert load_state(path, "other", heard) is None
    assert "other options or data" in heard.warned[0]


def test_no_state_starts_from_the_first_step(tmp_path):
    heard = Heard()
    assert load_state(tmp_path / "state.pt", "mark", heard) is None
    assert "nothing to resume" in heard.said[0]


DAMAGED = {
    "empty": b"",
    "text": b"torn",
    "all bytes": bytes(range(256)),
    "cut": b"PK\x03\x04 not a zip",
    "pickle that names a function": pickle.dumps(print, protocol=2),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_state_is_not_run(tmp_path, content):
    path, heard = tmp_path / "state.pt", Heard()
    path.write_bytes(content)
    assert load_state(path, "mark", heard) is None
    assert "damaged" in heard.warned[0]


def test_the_fingerprint_sees_what_decides_the_result_and_nothing_else():
    base = TrainingConfig.of(steps=10)
    mark = fingerprint(base, "tiles")
    assert fingerprint(TrainingConfig.of(steps=10, resume=True, overwrite=True, workers=2), "tiles") == mark
    for other in ({"steps": 11}, {"steps": 10, "seed": 1}, {"steps": 10, "lr": 0.1}, {"steps": 10, "loss": ("ce", "dice")}):
        assert fingerprint(TrainingConfig.of(**other), "tiles") != mark
    assert fingerprint(base, "other tiles") != mark


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_disk_that_fills_up_keeps_the_former_state(tmp_path, room):
    path = tmp_path / "student.state.pt"
    save_state(path, {"step": 7, "weights": torch.ones(10)}, "mark")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(DiskError, match=r"student\.state\.pt"):
            save_state(path, {"step": 8, "weights": torch.ones(100_000)}, "mark")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_state(path, "mark", Heard())["step"] == 7
    assert [each.name for each in tmp_path.iterdir()] == ["student.state.pt"]
