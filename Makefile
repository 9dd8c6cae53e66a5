# Everything that a person needs: make demo, make test. The rest is what these two are made of.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread each: the work runs in as many processes as there are cores.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test lint bench clean

setup: $(VENV)/.installed  ## make .venv and install what the demo needs

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[train,sim]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[train,sim,ros,lcm,pixels,logs,dev]'
	touch $@

demo: setup  ## the whole job on HalfCheetah; the report is outputs/demo/report.html
	$(BIN)/surefoot demo

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, then every test; those of the robot side start real processes, over real ROS 2 and LCM
	$(BIN)/python -m pytest

bench: setup  ## speeds, with a plain implementation and the peers' figures beside them
	$(BIN)/surefoot bench json=outputs/bench.json

clean:  ## forget the environment and everything made
	rm -rf $(VENV) outputs
