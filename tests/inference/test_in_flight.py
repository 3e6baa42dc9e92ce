"""A backend that answers later: one batch is under way while the next is started, and every answer comes to its own windows."""

import numpy as np
import pytest

from rsdistill.inference.engine import Stats, strips


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("blend", ["core", "hann"])
def test_answers_that_come_later_are_the_same(array_scene, oracle, ahead, blend):
    log = []

    class Later(oracle):
        def start(self, images, valid, windows, *, scores):
            number = len([one for one in log if one[0] == "start"])
            log.append(("start", number))
            pixels = images.copy()
            images[:] = 77  # a buffer that the next batch would take

            def wait():
                log.append(("wait", number))
                return self(pixels, valid, windows) if scores else self.labels(pixels, valid, windows)

            return wait

    codes = np.random.default_rng(0).integers(0, 5, (1, 70, 90)).astype(np.uint8)
    network, stats = Later(5), Stats()
    network.ahead = ahead
    scene = array_scene(codes, np.ones((70, 90), bool))
    found = list(strips(scene, network, bands=[1], tile=16, margin=2, batch=2, blend=blend, stats=stats))
    assert np.array_equal(np.concatenate([strip.labels for strip in found]), codes[0])
    under_way, most = 0, 0
    for event, _ in log:
        under_way += 1 if event == "start" else -1
        most = max(most, under_way)
    assert most == ahead + 1
    assert [number for event, number in log if event == "wait"] == sorted(number for event, number in log if event == "start")
    assert stats.network_seconds > 0
