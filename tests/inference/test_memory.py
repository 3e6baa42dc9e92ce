"""Memory: what is said before is what is taken, and windows get smaller to fit a limit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rsdistill.errors import ConfigError, MemoryLimitError
from rsdistill.inference.counting import Living, most_bytes
from rsdistill.inference.loading import Model, Windows
from rsdistill.inference.memory import fitting, network_bytes
from rsdistill.models import ModelCard, build_network


def test_what_is_alive_at_once_is_counted():
    with torch.inference_mode(), Living() as living:
        first = torch.empty(1000, dtype=torch.uint8, device="meta")
        view = first.view(10, 100)
        second = torch.empty(500, dtype=torch.uint8, device="meta")
        assert living.now == living.most == 1500
        del first
        assert living.now == 1500, "a view keeps its tensor"
        del view
        assert living.now == 500
        second.add_(1)
        assert living.now == 500
    assert living.most == 1500


def test_a_linear_network_holds_its_window_and_its_scores():
    network = build_network("linear", {}, bands=3, classes=6)
    assert most_bytes(network, 2, 3, (64, 32)) == 2 * (3 + 6) * 64 * 32 * 4


def test_a_network_is_counted_as_large_as_it_is():
    network = build_network("tiny", {}, bands=3, classes=4).eval()
    small, large = (most_bytes(network, 1, 3, (side, side)) for side in (128, 256))
    assert 3.5 * small < large < 4.5 * small
    assert large > 4 * 3 * 256 * 256
    assert next(network.parameters()).device.type == "cpu", "the network itself stays where it is"


@pytest.mark.parametrize(("limit", "side"), [(10_000_000, 1024), (1024 * 1024, 1024), (1024 * 1024 - 1, 512), (200_000, 384)])
def test_windows_shrink_until_they_fit(limit, side):
    start = 1024 if side != 384 else 768
    assert fitting(limit, Windows(start, 32), 32, lambda tile: tile * tile) == Windows(side, 32)


def test_what_never_fits_is_refused_with_both_figures():
    with pytest.raises(MemoryLimitError, match="windows of 128 pixels need 2 MB, --max-memory allows 1"):
        fitting(1_000_000, Windows(1024, 16), 32, lambda tile: 2_000_000)
    with pytest.raises(MemoryLimitError, match="windows of 256 pixels"):
        fitting(1_000_000, Windows(1024, 64), 32, lambda tile: 2_000_000)


def test_what_cannot_be_known_is_refused(tmp_path):
    card = ModelCard(arch="tiny", classes=[{"id": 1, "name": "a"}], bands=(1,), mean=(0.0,), std=(1.0,))
    with pytest.raises(ConfigError, match=r"m\.onnx is an exported model"):
        network_bytes(Model(tmp_path / "m.onnx", card, 1), 1, (8, 8))


@pytest.mark.parametrize("tight", [True, False])
def test_large_arrays_go_back_to_the_system_where_memory_is_short(tight):
    """In a process of its own: what earlier tests freed would take the arrays without growing."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    script = """
import sys
import numpy as np
from pathlib import Path
from rsdistill.inference.heap import bound_heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

bound_heap(tight=sys.argv[1] == "True")
before = resident()
arrays = [np.ones(8 << 20, np.uint8) for _ in range(8)]
held = arrays[1::2]
full = resident()
del arrays
print(full - before, full - resident(), len(held))
"""
    grown, given_back, held = map(
        int, subprocess.run([sys.executable, "-c", script, str(tight)], check=True, capture_output=True).stdout.split()
    )
    assert held == 4
    assert grown > 60 << 20
    assert (given_back > 30 << 20) == tight, "the holes between what is held"
