"""A toy robot: a point in the plane that a command pushes, with its log and an unfitted world model of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deploy.bundle import RobotDescription
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.fit import EnsembleConfig, EnsembleTrainer, fit_data, set_normalisers
from offline_train.replay import Batch

PUSH, NOISE = 0.3, 0.02
ROBOT = RobotDescription.model_validate(
    {
        "name": "point",
        "control_dt": 0.05,
        "observations": [
            {"name": f"{axis}_position", "source": "joint_position", "joints": [axis], "unit": "m"} for axis in "xy"
        ],
        "action": {"law": "effort", "joints": ["x", "y"], "low": [-1, -1], "high": [1, 1], "unit": "N"},
    }
)


class Toy(NamedTuple):
    """The log, packed, and the fitted model."""

    packed: Tensor
    model: DynamicsEnsemble


def toy_step(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """The mean next position obs + PUSH action, and the reward 1 - |x|_1 of the present one.

    The best policy walks to the origin and stays there.
    """
    return obs + PUSH * action, 1.0 - obs.abs().sum(-1)


def toy_batch(rows: int, seed: int) -> Batch:
    """Transitions of random actions at random places."""
    generator = torch.Generator().manual_seed(seed)
    obs, action = 2.0 * torch.rand(2, rows, 2, generator=generator) - 1.0
    mean, reward = toy_step(obs, action)
    next_obs = mean + NOISE * torch.randn(rows, 2, generator=generator)
    return Batch(obs, action, reward, next_obs, torch.zeros(rows))


def toy_trainer(config: EnsembleConfig, seed: int = 0) -> EnsembleTrainer:
    """An ensemble and its fit on the toy log, not begun."""
    model = DynamicsEnsemble(
        2, 2, torch.Generator().manual_seed(seed), members=config.members, elites=config.elites, hidden=config.hidden
    )
    train, holdout = toy_batch(2_000, seed=1), toy_batch(400, seed=2)
    set_normalisers(model, train.obs, train.action, train.next_obs, train.reward)
    parts = [fit_data(model, b.obs, b.action, b.next_obs, b.reward) for b in (train, holdout)]
    return EnsembleTrainer(model, *parts, config, torch.Generator().manual_seed(seed))


def state_equal(first: Any, second: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(state_equal(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(state_equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)
