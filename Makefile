# Two commands do everything on a fresh Debian 12 machine: `make prove` and `make test`. `make check` is the inner loop.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help setup prove test check lint types unit unit-all lab-test bench diagram clean

help:            ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup:           ## Debian packages and the virtual environment
	@PYTHON=$(PYTHON) scripts/setup

prove: setup     ## the main job: a dead server with a blank disk, rebuilt with the outside world cut off
	$(SUDO) $(BIN)/freehold prove

test: setup lint types unit-all lab-test  ## set-up and all tests

check: lint types unit      ## lint, types, import rules, unit tests: the inner loop

lint:
	$(BIN)/ruff check -q src tests bench scripts
	$(BIN)/ruff format -q --check src tests bench scripts
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache

types:
	$(BIN)/mypy

unit:
	$(BIN)/pytest -m "not lab and not slow" -n auto --dist loadfile

unit-all:
	$(BIN)/pytest -m "not lab" -n auto --dist loadfile

lab-test:        ## the tests that start real firmware, TPMs and networks
	$(SUDO) $(BIN)/pytest -m lab

bench:           ## time, memory and start-up, and the hand-built floor beside them
	$(SUDO) $(BIN)/python bench/run_all.py

diagram:         ## docs/lifecycle.md from the transition table
	$(BIN)/python scripts/lifecycle_diagram.py

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
