# Every target makes .venv by itself from the first python3 >= 3.11 that it finds.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
# two cores stay two cores: without a bound every library starts a thread a core, in every test process
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
WORKERS ?= 2

.PHONY: demo test test-slow fuzz bench qgis lint release docs clean

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 >= 3.11 found; set PYTHON=/path/to/python3.11" >&2; exit 3; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: $(STAMP) ## draw a scene, tile it, train teacher and student, map it, measure it
	env -u OMP_NUM_THREADS -u MKL_NUM_THREADS $(BIN)/rsdistill demo --out demo

test: $(STAMP) ## the fast tests: no network, no GPU
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(STAMP) ## the tests that take minutes
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow --timeout 1800

fuzz: $(STAMP) ## random bytes and values against every reader: ten minutes, or RSDISTILL_FUZZ_SECONDS, and a summary
	$(BIN)/python -m pytest tests/fuzz -m "not slow" --timeout 1800

bench: $(STAMP) ## ratios on this machine
	$(BIN)/python -m pytest tests/benchmarks -m benchmark -s --timeout 1800

qgis: $(STAMP) ## install Debian's QGIS (1.2 GB, needs root) where it is missing, and open results in it
	/usr/bin/python3 -c 'import qgis.core' 2>/dev/null || apt-get install --yes --no-install-recommends qgis python3-qgis qgis-providers
	$(BIN)/python -m pytest -m qgis

lint: $(STAMP) ## style, types, floors, licences, known holes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/supply_chain.py

release: $(STAMP) ## the wheel and the bill of materials that goes with it, in dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python .ci/supply_chain.py --bom dist/rsdistill.cdx.json

docs: $(STAMP) ## the site, in site/
	$(BIN)/mkdocs build --strict

clean:
	rm -rf demo site dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
