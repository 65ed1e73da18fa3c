# `make` alone lists the targets.
PY := .venv/bin/python
UV := .venv/bin/python -m uv
UV_VERSION := 0.13.9
LOCK := --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml

# Some environments disable bytecode; then each process spends seconds on compiling torch's sources
export PYTHONDONTWRITEBYTECODE =

# Begins a recipe line: until its command ends, says every few seconds that it is at work
define ticking
( s=0; while sleep 5 >/dev/null 2>&1; do s=$$((s + 5)); echo "$(1), $$s s so far" >&2; done ) & ticker=$$!; trap "kill $$ticker" EXIT;
endef

.DEFAULT_GOAL := help
.PHONY: help setup bench-setup dali130 demo bench-demo test test-slow soak check docs graph lock bench gpu-check

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

setup: .venv/ready ## create .venv with the pinned packages of requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python ≥ 3.11 is required; python3 is $$(python3 --version)"; exit 2; }
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(call ticking,installing the packages) $(UV) pip install --quiet --python $(PY) --require-hashes --requirements requirements.lock
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@$(call ticking,compiling bytecode) $(UV) pip install --quiet --python $(PY) --compile-bytecode --require-hashes --requirements requirements.lock
	@$(PY) -m brain_dist.ranks.gpus
	touch $@

dali130: .venv/ready ## replace DALI by its build for CUDA 13, see docs/install.md
	$(UV) pip uninstall --quiet --python $(PY) nvidia-dali-cuda120 nvidia-nvjpeg-cu12 nvidia-nvjpeg2k-cu12 nvidia-nvtiff-cu12 nvidia-nvimgcodec-cu12 nvidia-libnvcomp-cu12
	$(UV) pip install --quiet --python $(PY) --require-hashes --requirements requirements-dali130.lock
	@$(PY) -m brain_dist.ranks.gpus

bench-setup: .venv/ready ## create .venv-bench, which also has the libraries that benchmarks/ compares with
	test -x .venv-bench/bin/python || $(UV) venv --quiet --python $(PY) .venv-bench
	$(UV) pip install --quiet --python .venv-bench/bin/python --require-hashes --requirements requirements-bench.lock
	$(UV) pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation --editable .

demo: .venv/ready ## phantoms (or DATA=DIR [RECIPE=FILE]) → shards → training → evaluation → report, 4 to 8 minutes on 2 cores
	PATH="$(CURDIR)/.venv/bin:$$PATH" DATA="$(DATA)" RECIPE="$(RECIPE)" launch/demo.sh

bench-demo: .venv/ready ## phantoms → benchmark of three networks × two seeds → table → comparison → page, about 4 minutes on 2 cores
	PATH="$(CURDIR)/.venv/bin:$$PATH" launch/bench_demo.sh

test: .venv/ready ## tests except the slow ones, 9 to 13 minutes on 2 cores
	$(PY) -m pytest -m "not slow"

test-slow: .venv/ready ## the slow tests: all kinds of fault, all SLURM jobs
	$(PY) -m pytest -m slow

soak: .venv/ready ## inject 112 faults of 28 kinds at random moments and resume after each, as root
	$(PY) tests/faults/soak.py --table runs/faults.md

check: .venv/ready ## formatter, linter, types, dead code, import order, docstrings
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m vulture brain_dist launch benchmarks tests/vulture_whitelist.py # used by tests only is dead, too
	$(PY) -m vulture brain_dist launch benchmarks tests
	$(PY) -m pytest -n 0 tests/test_imports.py tests/test_docstrings.py

docs: .venv/ready ## docs/configuration.md from the docstrings of the settings, docs/checklist.md
	$(PY) -m brain_dist.config.reference > docs/configuration.md
	$(PY) -m brain_dist.judging.checklist > docs/checklist.md

graph: .venv/ready ## print the imports between the packages
	$(PY) tests/import_graph.py

lock: ## pin the packages of pyproject.toml with hashes; existing pins stay
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev $(LOCK) --output-file requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra bench $(LOCK) --output-file requirements-bench.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --constraint requirements.lock $(filter-out pyproject.toml,$(LOCK)) --output-file containers/serve.lock containers/serve.in
	version=$$(sed -n 's/^nvidia-dali-cuda120==\([^ ]*\).*/\1/p' requirements.lock) && echo "nvidia-dali-cuda130==$$version" | $(UV) pip compile --quiet --universal --python-version 3.11 --constraint requirements.lock $(filter-out pyproject.toml,$(LOCK)) --output-file requirements-dali130.lock -

bench: .venv/ready ## compare loader backends; see benchmarks/README.md
	$(PY) -m benchmarks.backends

gpu-check: .venv/ready ## check and measure one GPU, at most 20 minutes; results in runs/gpu/results
	$(PY) benchmarks/gpu_check.py --kit runs/gpu/kit --out runs/gpu/results --budget 1200
