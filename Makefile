# `make demo` and `make test` need Python 3.11 or newer and make; they set up everything else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint setup clean

demo: setup
	$(BIN)/moco pretrain demo --out runs/demo

test: setup
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/installed

# uv installs in a fraction of pip's time; pip does the same where uv cannot be had.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv || true
	$(BIN)/uv pip install -q --python $(BIN)/python -e '.[dev]' -c constraints.txt \
	  || $(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) runs
