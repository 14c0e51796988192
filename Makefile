# `make demo` and `make test` set everything up by themselves; they need Python 3.11 or newer, pip and venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint wheel-test pictures docs

demo: $(VENV)/installed
	$(BIN)/titok demo

test: $(VENV)/installed
	$(BIN)/pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The docs site, in site/; a broken link or an undocumented name is an error.
docs: $(VENV)/installed
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs site

# The wheel, installed and used outside the checkout.
wheel-test: $(VENV)/installed
	.ci/wheel $(VENV)

# The pictures of README and docs.
pictures: demo
	cp demo/reconstructions.png demo/samples.png demo/unmasking.png demo/training.png docs/images/

# torch first: asked for by its tested version alone, pip takes that build and does not look for a newer one.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
