# Each target sets up what it needs in .venv, from a bare Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On a machine with an NVIDIA GPU the demo takes a Triton starter, else the C++ one.
DEMO_KERNEL ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo tests/starters/cross_entropy.py || echo kernels/cpp/softmax.py)
DEMO_BUDGET ?= 180s

.PHONY: demo test test-gpu lint clean
.DEFAULT_GOAL := test

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"expected Python 3.11 or newer, found {sys.version.split()[0]}: make PYTHON=python3.11")'
	@echo "setting up $(VENV) (once; torch is the large part)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

demo: $(VENV)/ready
	@$(BIN)/autokernel optimize $(DEMO_KERNEL) --tag demo --budget $(DEMO_BUDGET) --seed 1

test: $(VENV)/ready
	@$(BIN)/pytest -n 2 --dist worksteal -m "not alone"
	@$(BIN)/pytest -m alone -rs

test-gpu: $(VENV)/ready
	@$(BIN)/pytest -m gpu

lint: $(VENV)/ready
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
