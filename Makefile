# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-extended check chaos bench golden clean

setup: $(READY)  ## Make .venv with everything pyproject.toml lists

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## A whole sweep on synthetic cars, end to end, into runs/demo
	$(BIN)/python -m tuning demo

test: $(READY)  ## All tests: on a real Ray cluster of three raylets, and beside it all others
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m "not extended"

test-extended: $(READY)  ## The tests that take minutes each, such as nodes lost in an elastic run
	$(BIN)/python -m pytest -m extended

check: $(READY)  ## Formatting, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings
	$(BIN)/lint-imports

chaos: $(READY)  ## Real runs under faults, into runs/chaos/chaos.md: CHAOS="--seed 1 --only worker"
	$(BIN)/python -m tests.chaos $(CHAOS)

bench: $(READY)  ## Ours against what people use, in one run each, into bench.json
	$(BIN)/python -m tests.bench.ingest
	$(BIN)/python -m tests.bench.training
	$(BIN)/python -m tests.bench.sweep

golden: $(READY)  ## Record the golden losses and W&B views anew; say why in the commit message
	$(BIN)/python -m tests.golden

clean:  ## Remove what make and the runs have made
	rm -rf .venv runs
