"""What the package is made of: every licence is known, and what binds or says nothing is found."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "supply_chain.py"


@pytest.fixture
def supply_chain():
    spec = importlib.util.spec_from_file_location("supply_chain", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "text", "doubtful"),
    [
        ("a", "MIT", False),
        ("a", "Apache Software License", False),
        ("a", "LGPL-2.1-or-later", False),
        ("a", "", True),
        ("a", "GPL-3.0-only", True),
        ("a", "MIT AND AGPL-3.0", True),
        ("a", "CC-BY-NonCommercial", True),
        ("nvidia-cublas", "LicenseRef-NVIDIA-Proprietary", False),
    ],
)
def test_licences_that_a_person_should_look_at(supply_chain, name, text, doubtful):
    assert supply_chain.is_doubtful(name, text) == doubtful


def test_everything_that_is_installed_with_the_package_is_known(supply_chain):
    found = supply_chain.installed("rsdistill")
    assert {"torch", "rasterio", "numpy", "click-plugins"} <= found.keys()  # the last is needed by rasterio only
    assert [name for name, one in found.items() if supply_chain.is_doubtful(name, supply_chain.licence(one))] == []


def test_the_bill_of_materials_holds_all_of_it_and_says_where_it_is_from(supply_chain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(supply_chain, "audit", lambda: False)
    assert supply_chain.main(["--bom", str(tmp_path / "bom.json")]) == 0
    bill = json.loads((tmp_path / "bom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "rsdistill"
    assert {one["name"] for one in bill["components"]} == supply_chain.installed("rsdistill").keys()
    torch = next(one for one in bill["components"] if one["name"] == "torch")
    assert torch["purl"] == f"pkg:pypi/torch@{torch['version']}"
    assert torch["licenses"]
    assert set(bill["dependencies"][0]["dependsOn"]) == {one["bom-ref"] for one in bill["components"]}


def test_without_a_network_nothing_is_audited_and_the_reason_is_said(supply_chain, monkeypatch, capsys):
    def refused(*_args, **_options):
        raise OSError("unreachable")

    monkeypatch.setattr(supply_chain, "find_spec", lambda _: object())
    monkeypatch.setattr(supply_chain.socket, "create_connection", refused)
    assert supply_chain.audit() is False
    assert capsys.readouterr().out == "pip-audit skipped: no network (unreachable)\n"
