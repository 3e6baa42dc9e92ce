"""The garbage collector is held in a block and runs again after it, however the block ends."""

import gc

import numpy as np
import pytest

from rsdistill.outputs.collecting import uncollected
from rsdistill.outputs.regions import Strip
from rsdistill.outputs.stitching import whole_polygons


def test_it_runs_again_after_the_outermost_block_and_after_an_error():
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def test_between_batches_of_polygons_it_runs_and_many_polygons_start_few_searches():
    runs = []
    gc.collect()
    gc.callbacks.append(lambda phase, info: runs.append(info["generation"]) if phase == "start" else None)
    try:
        labels = np.random.default_rng(0).integers(0, 4, (256, 256)).astype(np.uint8)
        for some in whole_polygons(Strip(row, labels[row : row + 64]) for row in range(0, 256, 64)):
            assert gc.isenabled()
            del some
    finally:
        gc.callbacks.pop()
    assert len(runs) < 40, "30 000 polygons and as many rings would start a hundred"
