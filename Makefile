# `make` alone lists the targets.
PY := .venv/bin/python
UV := .venv/bin/python -m uv
UV_VERSION := 0.13.9
LOCK := --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml

# Where the surroundings forbid bytecode, every process would compile torch's sources again: seconds each
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help setup bench-setup demo test soak check docs graph lock bench

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: .venv/ready ## make .venv with everything pinned in requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: needs Python 3.11 or newer, python3 is $$(python3 --version)"; exit 2; }
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --quiet --python $(PY) --require-hashes --requirements requirements.lock
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	touch $@

bench-setup: .venv/ready ## make .venv-bench: the same and the peers that benchmarks/ compares with (their pins clash with ours)
	test -x .venv-bench/bin/python || $(UV) venv --quiet --python $(PY) .venv-bench
	$(UV) pip install --quiet --python .venv-bench/bin/python --require-hashes --requirements requirements-bench.lock
	$(UV) pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation --editable .

demo: .venv/ready ## phantoms (or DATA=DIR [RECIPE=FILE]) → shards → training → evaluation → report, about five minutes on 2 cores
	PATH="$(CURDIR)/.venv/bin:$$PATH" DATA="$(DATA)" RECIPE="$(RECIPE)" launch/demo.sh

test: .venv/ready ## the tests, about ten minutes on 2 cores
	$(PY) -m pytest

soak: .venv/ready ## 128 faults of 16 kinds at random moments, each followed by a resume: a quarter of an hour, as root
	$(PY) tests/faults/soak.py --table runs/faults.md

check: .venv/ready ## formatter, linter, type checker
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: .venv/ready ## docs/configuration.md from the docstrings of the settings
	$(PY) -m brain_dist.config.reference > docs/configuration.md

graph: .venv/ready ## the imports between the packages, lowest first
	$(PY) tests/import_graph.py

lock: ## pin the newest versions that fit pyproject.toml, with hashes and without addresses
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev $(LOCK) --output-file requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra bench $(LOCK) --output-file requirements-bench.lock

bench: .venv/ready ## side-by-side measurements; see benchmarks/README.md
	$(PY) -m benchmarks.backends
