"""The entry point: ``python -m rsdistill`` and the ``rsdistill`` script."""

from rsdistill.cli import main

if __name__ == "__main__":
    main()
