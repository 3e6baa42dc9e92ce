"""Workers that die, hang or cannot read: replaced once with the same batches, then named with their file."""

import os
import signal
import time

import pytest
import torch

from rsdistill.data import loading
from rsdistill.data.dataset import BatchSource, Composition, Share
from rsdistill.data.loading import Part, loader, parts_of
from rsdistill.errors import MachineError, SceneError
from rsdistill.reporting import Silent


class Heard(Silent):
    def __init__(self):
        self.warned = []

    def warn(self, text):
        self.warned.append(text)


class Troubled(BatchSource):
    """A source in trouble at one step, ``times`` times; it counts in a file, since every worker is a process of its own."""

    def __init__(self, tile_set, counter, fault, times):
        super().__init__(tile_set, Composition(contexts=2, tiles=1), seed=0)
        self.counter, self.fault, self.times = counter, fault, times

    def part(self, step, share):
        if step == 2 and self.counter.stat().st_size < self.times:
            with self.counter.open("ab") as file:
                file.write(b".")
            self.reader.reading("scenes/bad.tif")
            self.fault()
        return super().part(step, share)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def refuse():
    raise SceneError("scenes/bad.tif ends early", hint="copy it again")


@pytest.fixture
def counter(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", 4.0)
    path = tmp_path / "counter"
    path.touch()
    return path


@pytest.mark.parametrize("fault", [die, hang, refuse])
def test_a_worker_is_replaced_once_and_the_batches_are_the_same(tile_set, counter, fault):
    heard = Heard()
    source = Troubled(tile_set, counter, fault, times=1)
    plain = BatchSource(tile_set, source.composition, seed=0)
    batches = list(loader(source, parts_of(range(4)), workers=1, progress=heard))
    assert len(batches) == 4
    assert all(torch.equal(batch.image, plain[step].image) for step, batch in enumerate(batches))
    assert len(heard.warned) == 1
    assert "scenes/bad.tif" in heard.warned[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_a_worker_that_dies_again_is_named_with_its_file(tile_set, counter):
    with pytest.raises(MachineError, match=r"a reading process died while reading scenes/bad\.tif"):
        list(loader(Troubled(tile_set, counter, die, times=2), parts_of(range(4)), workers=2))


def test_a_file_that_cannot_be_read_twice_keeps_its_own_error(tile_set, counter):
    with pytest.raises(SceneError, match="ends early") as caught:
        list(loader(Troubled(tile_set, counter, refuse, times=2), parts_of(range(4)), workers=1))
    assert caught.value.hint == "copy it again"


def test_without_workers_an_error_is_what_it_is(tile_set, counter):
    heard = Heard()
    with pytest.raises(SceneError):
        list(loader(Troubled(tile_set, counter, refuse, times=1), parts_of(range(4)), workers=0, progress=heard))
    assert not heard.warned


def test_parts_come_in_the_order_of_steps():
    assert parts_of(range(3, 5), Share(1, 2).divided(2)) == [Part(step, Share(n, 4)) for step in (3, 4) for n in (2, 3)]
