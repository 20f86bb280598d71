# Two commands: `make quickstart` and `make test`. Both set up .venv themselves; Python 3.11+ and pip are enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-unit test-faults lint clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: .venv/.installed
	$(BIN)/qcrd run experiments/quickstart.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/basedpyright

test-unit: .venv/.installed
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not ray and not e2e and not faults" --ignore tests/ray --ignore tests/e2e --ignore tests/faults --durations=5

test: lint test-unit
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "ray or e2e" --durations=25

# Ten kills of one job, nodes that die, whole sweeps, load: too long for every change (README).
test-faults: .venv/.installed
	$(BIN)/python -m pytest -m faults --durations=0 -rA

clean:
	rm -rf .venv build *.egg-info
