# Every target sets itself up: a clone, Python 3.11 and make are enough.
#   make test WITHOUT_TORCH=1   in an environment of its own that has no torch: pipeline tests skip, and say so
#   make test ARGS='-k lease'   narrows; WORKERS=0 runs in one process
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

WORKERS ?= 3
ARGS ?=
SEED ?= $(shell date +%Y%m%d-%H%M%S)
SEED := $(SEED)
BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)

ifdef WITHOUT_TORCH
VENV ?= .venv-without-torch
EXTRAS := cli,daemon,sign
else
VENV ?= .venv
EXTRAS := demo
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
COVERED := */hotshelf_daemon/store/*,*/hotshelf_daemon/index/*,*/hotshelf_daemon/ingest/*,*/hotshelf_shared/wire.py,*/hotshelf_shared/manifest.py
RECORDED ?= tests/shared tests/daemon tests/upgrades tests/faults
UNRECORDED := --ignore tests/faults/test_killing.py --ignore tests/faults/test_random_kills.py
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup demo test lint check format bench coverage mutate audit soak pod clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make the environment (every target below does this by itself)

# pip first: --group needs 25.1. torch next: its pin keeps what depends on it from dragging in another build.
$(READY): pyproject.toml constraints.txt
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hotshelf needs Python 3.11 or newer: make BASE_PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV) with $$("$(BASE_PYTHON)" --version); the first time takes some minutes"
	@test -x $(BIN)/python || "$(BASE_PYTHON)" -m venv $(VENV)
	@$(PIP) --upgrade pip
ifndef WITHOUT_TORCH
	@$(PIP) torch
endif
	@$(PIP) --editable '.[$(EXTRAS)]' --group dev
	@touch $@

$(BENCH_READY): $(READY)
	@$(PIP) --editable '.[bench]'
	@touch $@

demo: $(READY) ## start an origin, a daemon and workers here, and draw a picture
	@$(BIN)/hotshelf demo $(ARGS)

test: $(READY) ## run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(READY) ## ruff, mypy and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

check: lint test ## what CI runs: lint, then the tests

format: $(READY) ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(BENCH_READY) ## measure against peers and against the bare machine
	@$(BIN)/python -m tests.bench $(ARGS)

# In a folder where the tests' other users may write theirs; what is killed at every system call leaves no record, and takes long.
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage.d/data
coverage: $(READY) ## branch coverage of the rooms that hold bytes; fails below 95 %
	@rm -rf .coverage.d && mkdir -m 1777 .coverage.d
	@$(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist loadfile $(UNRECORDED) $(RECORDED) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --fail-under 95 --show-missing --include '$(COVERED)'

mutate: $(READY) ## change the decisions everything rests on, one place at a time, and see whether tests notice
	@$(PIP) 'cosmic-ray==8.7.0'
	@$(BIN)/python -m tests.mutation

audit: $(READY) ## look the pinned versions up among known weaknesses (needs the network)
	@$(PIP) 'pip-audit==2.10.1'
	@$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement constraints.txt

soak: $(READY) ## the long tests; SEED=NAME resumes a run after its last good round
	@echo "this run is called $(SEED): make soak SEED=$(SEED) resumes it"
	@TEST_SEED=$(SEED) HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -m soak $(ARGS)
	@HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest tests/shared tests/faults/test_model.py --timeout 3600 $(ARGS)
	@$(BIN)/python -m tests.faults.soaking $(SEED)

pod: $(READY) ## build the images and run a real pod (needs root and podman)
	@$(BIN)/python -m pytest -m pod --timeout 1800 $(ARGS)

clean: ## remove what make made
	rm -rf .venv .venv-without-torch .coverage.d .cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
