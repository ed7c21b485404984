# One word per duty. Everything happens in .venv, which is made on the first call.
PYTHON ?= python3
DATA ?= data
STUDIES ?=
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Two tests that wait for clusters at a time, and one that computes.
BESIDE := -n 3 --dist worksteal
QUICK := not (gpu or slow or alone or ray or browser or training or whole_report or long)

.DEFAULT_GOAL := help
.PHONY: help demo quick test slow lint format check test-gpu faults bench docs site pins clean

help:                    ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "make %-9s %s\n", $$1, $$2}'

demo: .venv/runtime      ## a small real benchmark on this computer, no download of data
	$(BIN)/python launch.py run experiments/quickstart.yaml
	$(BIN)/python launch.py report experiments/quickstart.yaml --out report

quick: .venv/dev         ## the tests that need neither Ray nor a browser nor training: under a minute
	$(PYTEST) -n 2 --dist worksteal -m "$(QUICK)"

test: .venv/dev          ## the default tests: three at a time, then those that must have the computer for themselves
	@status=0; \
	$(PYTEST) $(BESIDE) -m "not gpu and not slow and not alone" || status=$$?; \
	$(PYTEST) -n 1 -m "not gpu and not slow and alone" || status=$$?; \
	exit $$status

slow: .venv/dev          ## the other tests, except those that need a GPU: hours
	$(PYTEST) -n 1 -m slow

lint: .venv/dev          ## style, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

format: .venv/dev        ## fix the style as far as tools can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test         ## what every change must pass

test-gpu: .venv/dev      ## the tests that need a GPU
	$(PYTEST) -m gpu

faults: .venv/dev        ## a hundred kills, an hour on two cores; in parts with STUDIES='own and cluster': docs/faults.md
	$(PYTEST) tests/faults/test_faults.py -m slow -k "$(STUDIES)"
	$(BIN)/python docs/update_faults.py build/faults docs/faults.md

bench: .venv/runtime     ## what every part costs over the network alone: JSON lines, benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.bench

docs: .venv/runtime      ## what of the documents is generated: results, costs, reference
	$(BIN)/python docs/update_readme.py
	$(BIN)/python docs/update_reference.py

site: .venv/dev          ## the documentation as a web site, build/site/docs/index.html; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/site

pins: .venv/dev          ## requirements*.txt: the installed versions of what pyproject.toml lists
	$(BIN)/python docs/pins.py

clean:                   ## remove everything that can be made again, except results
	rm -rf .venv runs report

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/runtime: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch .venv/runtime $@
