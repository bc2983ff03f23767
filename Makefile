# Every target works on a machine that has only Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORPORA := $(or $(BATCHINFER_CORPORA),../shared/data)
RESULT ?= peers
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types faults bench bench-peers tables dist clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.runtime: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing batchinfer into $(VENV) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.runtime  ## classify the sample reviews and show the first rows
	@$(BIN)/batchinfer demo demo-output

test: $(VENV)/.dev  ## run the tests (CPU, offline)
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: format lint types test  ## what CI runs

format: $(VENV)/.dev
	@$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	@$(BIN)/ruff check .

types: $(VENV)/.dev
	@$(BIN)/mypy

faults: $(VENV)/.dev  ## every kill, full disk and power cut there is; writes docs/faults.md (minutes)
	@$(BIN)/python -m tests.faults.suite --all --report docs/faults.md
	@$(BIN)/python -m tests.faults.kills --kills 20 --report docs/faults.md

bench: $(VENV)/.runtime  ## the pipeline without a model: rows a second, peak memory
	@$(BIN)/python benchmarks/pipeline.py

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing what batchinfer is measured against ..."
	@$(PIP) --editable '.[dev,bench]'
	@touch $@

bench-peers: $(VENV)/.bench  ## whole runs beside other libraries (hours); RESULT=name ARGUMENTS='--cases core'
	@$(BIN)/python -m benchmarks.peers --out benchmarks/results/$(RESULT).json $(ARGUMENTS) --corpus \
		$(CORPORA)/gsm8k/grade_school_math/data/test.jsonl \
		$$(find $(CORPORA)/self-instruct -name '*.jsonl' | sort)
	@$(BIN)/python -m benchmarks.tables

tables: $(VENV)/.runtime  ## the tables of README.md and docs/performance.md, from benchmarks/results
	@$(BIN)/python -m benchmarks.tables

dist: $(VENV)/.dev  ## the wheel and the source distribution, checked
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/python -m twine check --strict dist/*

clean:  ## remove what was built and the virtual environment
	rm -rf $(VENV) dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis
