"""What the package is made of: the licence of everything it installs, and known holes in it (pip-audit, where the network allows).

python .ci/supply_chain.py               checks; leaves with 1 where a licence is unknown or forbids what ours permits, or a hole is known
python .ci/supply_chain.py --list        also prints every package, its version and licence, as a table
python .ci/supply_chain.py --bom FILE    also writes them as a bill of materials (CycloneDX 1.6 JSON), which goes with a release
"""

import json
import re
import socket
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

PACKAGE = "rsdistill"
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|Zlib|HPND|CMU|Unlicense|Public Domain|CC0|LGPL|X11)", re.I
)
"""Licences under which a dependency may be used by an Apache-2.0 program; LGPL and MPL bind only changes to the library itself."""
BINDING = re.compile(r"\b(AGPL|GPL|SSPL|Affero|GNU General)|NonCommercial|Proprietary", re.I)
"""Licences that bind a program which uses the package, alone or beside others."""
PLATFORM = re.compile(r"^(nvidia|cuda|triton)")
"""Parts of torch that exist for one kind of machine, under terms of its maker."""


def main(arguments: list[str]) -> int:
    """Check licences and holes; return the exit code."""
    rows = sorted((name, found.version, licence(found)) for name, found in installed(PACKAGE).items())
    for name, version, text in rows if "--list" in arguments else ():
        print(f"{name:<32} {version:<16} {text}")
    if "--bom" in arguments:
        Path(arguments[arguments.index("--bom") + 1]).write_text(json.dumps(bill(rows), indent=1) + "\n", encoding="utf-8")
    doubtful = [row for row in rows if is_doubtful(row[0], row[2])]
    for name, version, text in doubtful:
        print(f"licence of {name} {version}: {text or 'not stated'}", file=sys.stderr)
    print(f"licences: {len(rows)} packages, {len(doubtful)} to look at")
    return 1 if doubtful or audit() else 0


def bill(rows: list[tuple[str, str, str]]) -> dict[str, object]:
    """Return the CycloneDX 1.6 bill of materials of the package: itself, and (name, version, licence) of everything that it needs here."""
    components = [{"type": "library", **entry(*row)} for row in rows]
    itself = distribution(PACKAGE)
    own = {"type": "application", **entry(PACKAGE, itself.version, licence(itself))}
    needed = {"ref": own["bom-ref"], "dependsOn": [component["bom-ref"] for component in components]}
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    return {**head, "metadata": {"component": own}, "components": components, "dependencies": [needed]}


def entry(name: str, version: str, text: str) -> dict[str, object]:
    """Return one component, by its package URL."""
    url = f"pkg:pypi/{name}@{version}"
    return {"bom-ref": url, "name": name, "version": version, "purl": url, "licenses": [{"license": {"name": text}}] if text else []}


def installed(package: str) -> dict[str, Distribution]:
    """Return everything that ``package`` needs at run time, directly or not, as far as it is installed here."""
    found: dict[str, Distribution] = {}
    waiting = [package]
    while waiting:
        name = waiting.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue
        for text in one.requires or ():
            needed = Requirement(text)
            if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                waiting.append(needed.name)
        found[re.sub(r"[-_.]+", "-", name).lower()] = one
    del found[package]
    return found


def licence(one: Distribution) -> str:
    """Return what a package says of its licence in its metadata, in one line."""
    stated = one.metadata.get("License-Expression") or ""
    classes = [text.rpartition(" :: ")[2] for text in one.metadata.get_all("Classifier", []) if text.startswith("License ::")]
    first = (one.metadata.get("License") or "").strip().partition("\n")[0]
    return stated or ", ".join(classes) or first[:60]


def is_doubtful(name: str, text: str) -> bool:
    """Return whether a person should look at the licence ``text`` of the package ``name``."""
    return not PLATFORM.match(name) and (not PERMISSIVE.search(text) or bool(BINDING.search(text)))


def audit() -> bool:
    """Return whether pip-audit knows of a hole; say why where it cannot be asked."""
    if find_spec("pip_audit") is None:
        print("pip-audit skipped: it is not installed (pip install pip-audit)")
        return False
    try:
        socket.create_connection(("pypi.org", 443), timeout=1).close()
    except OSError as error:
        print(f"pip-audit skipped: no network ({error})")
        return False
    return subprocess.run([sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off"], check=False).returncode != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
