"""What all tests share: one thread, no surprises from the machine they run on."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.pop("RSDISTILL_WORK", None)
