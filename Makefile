# Everything that a person needs: make demo, make test. The rest is what these two are made of.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread each: the work runs in as many processes as there are cores.
export OMP_NUM_THREADS ?= 1

# Tests that start processes and wait for them; they share no core with the others, so that none waits in vain.
PROCESSES := $(wildcard tests/deploy/ros2/test_policy_node.py tests/deploy/ros2/test_policy_and_safety.py tests/deploy/ros2/test_recorder.py \
  tests/deploy/ros2/test_safety_node.py tests/deploy/lcm/test_runner.py tests/deploy/lcm/test_robot_side.py tests/deploy/lcm/test_lcm_replay.py tests/sim/test_stack.py \
  tests/sim/test_joint_failure.py tests/sim/test_ros2_plant.py tests/sim/test_lcm_stack.py \
  tests/sim/test_supervisor.py tests/sim/test_fault_injection.py tests/sim/test_endurance.py)

.PHONY: setup demo test test-robot lint bench clean

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

test: lint  ## lint, then every test but those of test-robot
	$(BIN)/python -m pytest $(PROCESSES:%=--ignore=%)

test-robot: $(VENV)/.installed-dev  ## the robot side in real processes, over real ROS 2 and LCM; wants an idle machine
	$(BIN)/python -m pytest $(PROCESSES)

bench: setup  ## speeds, with a plain implementation and the peers' figures beside them
	$(BIN)/surefoot bench json=outputs/bench.json

clean:  ## forget the environment and everything made
	rm -rf $(VENV) outputs
