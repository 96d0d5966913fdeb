# `make demo` and `make test` need only Python 3.10 or newer, git and make.
PYTHON ?= python3
WORKSPACE ?= demo-workspace
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow mutants lint format bench clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "no venv could be made; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --prefer-binary \
		--constraint constraints.txt --editable '.[deep,lite,dev]'
	@# pyiqa draws in opencv-python, over the same files; it wants libGL, which servers have not
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall \
		--constraint constraints.txt opencv-python-headless
	@touch $(STAMP)

install: $(STAMP) ## make .venv and install everything into it

demo: $(STAMP) ## the whole main job on 700 synthetic images (WORKSPACE=folder)
	$(BIN)/iqa-ray demo --workspace "$(WORKSPACE)"

test: $(STAMP) ## every test but the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP) ## those that take more than twenty seconds each
	$(BIN)/python -m pytest -m slow

mutants: $(STAMP) ## change lines of the package and count the changes that no test notices
	@$(BIN)/python -m benchmarks.mutants

lint: $(STAMP) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the common style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure; prints JSON
	$(BIN)/python -m benchmarks

clean: ## remove .venv, caches and the demo's workspace
	rm -rf $(VENV) demo-workspace mutants build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
