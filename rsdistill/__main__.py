"""The entry point: ``python -m rsdistill`` and the ``rsdistill`` script."""

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the command line, after a look at what the shell left of the three standard streams."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are still being imported ends quietly
    _open_standard_streams()
    from rsdistill.cli import main

    main()


def _open_standard_streams() -> None:
    """Point closed standard streams to nowhere; else the next file opened takes such a number, and messages are written into it."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


if __name__ == "__main__":
    main()
