PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pytest-xdist workers: the suite mostly waits for servers and workers, so more than the cores help.
JOBS ?= 4

.DEFAULT_GOAL := help
.PHONY: help venv demo test check

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/smqueue: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

venv: $(BIN)/smqueue  ## make .venv with every extra

demo: venv  ## run the demonstration on an embedded server
	$(BIN)/smqueue demo $(ARGS)

test: venv  ## run the whole suite, in parallel
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: venv  ## lint, format, types, layers, promises without a test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tests/promises.py
