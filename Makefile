PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The main job: everything installed, then the digits model trained, measured and drawn into outputs/digits.
digits: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" bash runs/digits.sh

# What that model learnt: probes, few labels, fine-tuning.
digits-probes: digits
	PATH="$(abspath $(BIN)):$$PATH" bash runs/digits-probes.sh

# Everything installed, then linted and tested.
test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/python -m pytest

# The documentation as a site, in outputs/site. Every warning is an error.
docs: $(VENV)/installed
	$(BIN)/python docs/tables.py
	$(BIN)/sphinx-build -W --keep-going --fresh-env docs outputs/site

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.PHONY: digits digits-probes test docs format
