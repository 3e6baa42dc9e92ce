"""The table of faults in the documentation names tests that exist, and every test of a fault stands in it."""

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs/reference/faults.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
NAMED = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[-1])}


def defined():
    """Functions of the test files that are about faults, and of those that the page refers to beyond them."""
    files = [*(TESTS / "faults").glob("test_*.py"), *(TESTS / "fuzz").glob("test_*.py"), TESTS / "geo" / "test_locking.py"]
    return {path.name: re.findall(r"^(?:def (test_\w+)|@case\(.*\n(?:.*\n)?def (\w+))", path.read_text(), re.MULTILINE) for path in files}


def names(found):
    return {name for pair in found for name in pair if name}


def test_every_test_that_is_named_exists():
    known = set().union(*(names(found) for found in defined().values()))
    assert known >= NAMED


def test_every_fault_that_is_provoked_is_named():
    files = ("test_bad_input.py", "test_disks.py", "test_hostile.py", "test_signals.py")
    ours = names(pair for file in files for pair in defined()[file])
    helpers = {"test_bad_input_is_one_line_and_changes_nothing", "test_a_class_without_a_colour_gets_one"}
    helpers |= {"test_a_vrt_of_its_own_folder_is_read_when_it_is_allowed", "test_what_is_missing_is_said_before_torch_is_imported"}
    assert ours - helpers <= NAMED


def test_every_row_has_an_exit_code():
    assert len(ROWS) > 30
    assert all(re.fullmatch(r"[\d, ]+", row[2]) for row in ROWS)
