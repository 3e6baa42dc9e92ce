"""The table of faults in the documentation names tests that exist, and every test of a fault stands in it."""

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs/reference/faults.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
NAMED = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[-1])}
ABOUT_THE_PAGE = {"test_faults_page.py", "test_messages.py"}
HELPERS = {
    "test_bad_input_is_one_line_and_changes_nothing",
    "test_a_class_without_a_colour_gets_one",
    "test_a_vrt_of_its_own_folder_is_read_when_it_is_allowed",
    "test_what_is_missing_is_said_before_torch_is_imported",
}


def defined(files):
    """Names of the tests, and of the cases, in test files."""
    found = [
        re.findall(r"^(?:def (test_\w+)|@case\(.*\n(?:.*\n)?def (\w+))", path.read_text(encoding="utf-8"), re.MULTILINE) for path in files
    ]
    return {name for pairs in found for pair in pairs for name in pair if name}


def test_every_test_that_is_named_exists():
    assert defined(TESTS.rglob("test_*.py")) >= NAMED


def test_every_fault_that_is_provoked_is_named():
    files = [path for path in (TESTS / "faults").glob("test_*.py") if path.name not in ABOUT_THE_PAGE]
    assert defined([*files, TESTS / "training" / "test_divergence.py"]) - HELPERS <= NAMED


def test_every_row_has_an_exit_code():
    assert len(ROWS) > 60
    assert all(re.fullmatch(r"[\d,; ]+", row[2]) for row in ROWS)
