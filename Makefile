PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test docs clean

demo: .venv/cli  ## what it does, in a minute and a half: digits, with clean and with wrong labels
	$(BIN)/crest demo

test: .venv/dev  ## format, lint, types, tests and doctests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

docs: .venv/docs  ## the site, in site/; a warning is an error
	$(BIN)/mkdocs build --strict

.venv/cli: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) ".[cli]"
	touch $@

.venv/dev: .venv/cli
	$(PIP) ".[cli,dev,frameworks]"
	touch $@

.venv/docs: .venv/cli
	$(PIP) ".[docs]"
	touch $@

clean:
	rm -rf .venv runs site
