# One word per duty. Everything happens in .venv, which is made on the first call.
PYTHON ?= python3
DATA ?= data
STUDIES ?=
BIN := .venv/bin

.PHONY: demo test lint check test-gpu faults bench docs clean

demo: .venv/runtime      ## a small real benchmark on this computer, no download of data or weights
	$(BIN)/python launch.py run experiments/quickstart.yaml
	$(BIN)/python launch.py report experiments/quickstart.yaml --out report

test: .venv/dev          ## the default tests: two at a time, then those that must have the computer for themselves
	@status=0; \
	$(BIN)/python -m pytest -m "not gpu and not slow and not alone" -n 2 --dist loadfile || status=$$?; \
	$(BIN)/python -m pytest -m "not gpu and not slow and alone" || status=$$?; \
	exit $$status

lint: .venv/dev          ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test         ## what every change must pass

test-gpu: .venv/dev      ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

faults: .venv/dev        ## a hundred kills, an hour on two cores; in parts with STUDIES='one rank': docs/faults.md
	$(BIN)/python -m pytest tests/faults/test_faults.py -m slow -k "$(STUDIES)"
	$(BIN)/python tests/support/fault_summary.py build/faults docs/faults.md

bench: .venv/runtime     ## what every part costs over the network alone: JSON lines, benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.bench

docs: .venv/runtime      ## the README's results, from results/
	$(BIN)/python docs/update_readme.py

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
