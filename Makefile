PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pytest-xdist workers: the suite mostly waits for servers and workers, so more than the cores help.
JOBS ?= 4
BACKEND ?= valkey
# Of the chaos suite: how long faults hit, of which seed, and the server's appendfsync (always or everysec).
MINUTES ?= 10
SEED ?= 1
FSYNC ?= always
RUNS ?= 1000000

# The suite starts hundreds of processes: without bytecode on disk each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: contract help venv demo test check docs chaos fuzz bench

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/smqueue: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

venv: $(BIN)/smqueue  ## make .venv with every extra

demo: venv  ## run the demonstration on an embedded server
	$(BIN)/smqueue demo $(ARGS)

test: venv  ## run the whole suite, in parallel
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

contract: venv  ## the contract suite on one deployment: BACKEND=valkey, redis, cluster, rabbitmq or memory
	$(BIN)/python -m pytest tests/contract --backend $(BACKEND) $(ARGS)

check: venv  ## lint, format, types, layers, promises without a test, stale figures
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tests/promises.py
	$(BIN)/python -m benchmarks.figures --check

docs: venv  ## build the site of docs/ into build/site; a warning is a failure
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

chaos: venv  ## real processes under faults: MINUTES=10 SEED=1 FSYNC=always
	$(BIN)/python -m tests.faults.chaos --minutes $(MINUTES) --seed $(SEED) --fsync $(FSYNC) $(ARGS)

fuzz: venv  ## coverage-guided fuzzing of what reads Redis and JSON: RUNS=1000000
	$(BIN)/python -m tests.fuzz.parsers -runs=$(RUNS)

bench: venv  ## ours, the peers and the floor, into benchmarks/results: ARGS='--quick'
	$(BIN)/python -m benchmarks $(ARGS)
