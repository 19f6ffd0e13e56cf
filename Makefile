PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test clean

demo: .venv/cli  ## compare CREST with random and full training on digits
	$(BIN)/crest compare digits --strategies crest,random,full --seeds 0,1,2 --out runs/demo

test: .venv/dev  ## format, lint, types, tests and doctests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

.venv/cli: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) ".[cli]"
	touch $@

.venv/dev: .venv/cli
	$(PIP) ".[cli,dev,frameworks]"
	touch $@

clean:
	rm -rf .venv runs
