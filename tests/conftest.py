"""What all tests share: one thread, no surprises from the machine they run on."""

import os
import signal
import sys

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.pop("RSDISTILL_WORK", None)
# begun in the background by some shells, Python ignores SIGINT, and so would every process that the tests begin
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def threads_stay():
    """Undo what a test makes of torch's threads: their number decides how sums are rounded."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 1
    yield
    if "torch" in sys.modules and sys.modules["torch"].get_num_threads() != before:
        sys.modules["torch"].set_num_threads(before)
