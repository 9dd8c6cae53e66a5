"""The termination rules at their thresholds, for numpy arrays and torch tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sim.terminations import TERMINATIONS

# (rule, the first three values of the observation, over)
CASES = [
    ("never", [0.0, 0.0, 0.0], False),
    ("never", [np.nan, -np.inf, np.inf], False),
    ("hopper", [1.2, 0.0, 0.0], False),
    ("hopper", [0.7, 0.0, 0.0], True),
    ("hopper", [0.701, 0.199, -99.0], False),
    ("hopper", [1.2, -0.2, 0.0], True),
    ("hopper", [1.2, 0.0, -100.0], True),
    ("hopper", [np.inf, 0.0, 0.0], True),
    ("hopper", [1.2, 0.0, np.nan], True),
    ("walker2d", [0.8, 0.0, 0.0], True),
    ("walker2d", [0.81, -0.99, 1000.0], False),
    ("walker2d", [2.0, 0.0, 0.0], True),
    ("walker2d", [1.2, 1.0, 0.0], True),
    ("walker2d", [np.nan, 0.0, 0.0], True),
    ("ant", [0.2, 0.0, 0.0], False),
    ("ant", [0.19, 0.0, 0.0], True),
    ("ant", [1.0, 5.0, 0.0], False),
    ("ant", [1.01, 0.0, 0.0], True),
    ("ant", [0.5, np.inf, 0.0], True),
    ("ant", [0.5, 0.0, np.nan], True),
]


@pytest.mark.parametrize(("rule", "observation", "over"), CASES)
def test_rule(rule: str, observation: list[float], over: bool) -> None:
    values = np.array(observation)
    assert TERMINATIONS[rule](values) == over
    # A batch of any shape, in torch as in numpy.
    for batch in (np.tile(values, (2, 3, 1)), torch.tensor(observation).repeat(2, 3, 1)):
        ends = TERMINATIONS[rule](batch)
        assert tuple(ends.shape) == (2, 3)
        assert bool(ends.all()) == over
        assert bool(ends.any()) == over
