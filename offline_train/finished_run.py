"""A finished training run, read back with its policy and whatever else it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.datasets import TransitionDataset
from adapters.errors import UserError
from adapters.files import read_json
from deploy.spec import RobotDescription
from offline_train.algorithms.awac_online import OnlineAwacConfig, new_awac
from offline_train.algorithms.base import Learner
from offline_train.algorithms.demonstrated import DemonstratedConfig
from offline_train.algorithms.model_free import ModelFreeConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.nppac import NppacConfig, PriorActorCritic
from offline_train.algorithms.registry import make_algorithm, make_model_free
from offline_train.algorithms.rma import Adaptation, Rma, transitions
from offline_train.algorithms.sac import Sac
from offline_train.algorithms.sac_online import OnlineSacConfig
from offline_train.checkpoint import load_checkpoint
from offline_train.data import Data, open_log
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.priors.base import Prior
from offline_train.priors.fit import load_prior
from offline_train.settings import TrainConfig
from offline_train.world_model import load_world_model
from sim.environments import Environment, make_environment
from sim.gymnasium_tasks import OpenTask, find_task, robots_of
from sim.terminations import TERMINATIONS

# Rows that a run's graphs are compared over.
PARITY_ROWS = 1_000
RANDOM_ROBOTS = 50
# Standard deviations of the observations by which a place is far from the demonstrations.
FAR = 5.0


class Run:
    """A finished training run, read back from its folder.

    Args:
        folder: where surefoot train left it.
        policy: the file of the policy, None for the final one.

    Attributes:
        record: what run.json says.
        config: the run's settings.
        robot: whose commands the policy gives.
        policy: the policy with all that was learned beside it.
        obs: observations to compare graphs over, `(PARITY_ROWS, obs_dim)`.
        action: commands to compare graphs over, `(PARITY_ROWS, act_dim)`.
        model: the world model, None for a run without one.
        algorithm: what was trained in the world model, None for another run.
        data: the log, None for a run in the simulator.
        prior: what demonstrations gave, None for a run without.
        adaptation: the adaptation module, None where the algorithm has none.
        history: histories to compare its graphs over, `(PARITY_ROWS, window * (1 + 2 obs_dim + act_dim))`.

    Raises:
        UserError: it is not there, not finished, or its data is gone.
    """

    def __init__(self, folder: Path, policy: Path | None = None) -> None:
        if not (folder / "policy.safetensors").is_file():
            raise UserError(
                f"{folder} holds no finished run (policy.safetensors is missing); finish it with resume=true."
            )
        self.record: dict[str, Any] = read_json(folder / "run.json")
        free = {"output": folder, "resume": False, "threads": 1}
        every = {"checkpoint_every": 1, "evaluate_every": 1, "evaluation_episodes": 0}
        self.config = TrainConfig.model_validate(self.record["config"] | free | every)
        robot, settings = self.config.robot, self.config.algorithm
        assert robot is not None, "a run has a robot"
        self.robot = robot
        self.model: DynamicsEnsemble | None = None
        self.algorithm: Mopo | None = None
        self.data: Data | None = None
        self.adaptation: Adaptation | None = None
        self.prior: Prior | None = None
        self.policy: Learner
        if isinstance(settings, OnlineSacConfig):
            environment = find_task(self.record["dataset"]["env"])
            self.policy = settings.new_learner(robot.obs_dim, robot.act_dim, torch.Generator())
            self.obs, self.action = random_motion(environment)
        elif isinstance(settings, DemonstratedConfig):
            self.obs, self.action = near_and_far(open_log(self.config.dataset))
            self.policy = new_demonstrated(settings, robot)
            if isinstance(settings, NppacConfig):
                self.prior = load_prior(folder / "prior.safetensors")[1]
        else:
            assert isinstance(settings, (MopoConfig, ModelFreeConfig)), "a run with a policy has an algorithm"
            dataset = open_log(self.config.dataset)
            self.data = Data(dataset, robot, self.config.ensemble.holdout_fraction, "cpu")
            rows = np.random.default_rng(0).integers(0, len(dataset), PARITY_ROWS)
            self.obs, self.action = (torch.from_numpy(v[rows]) for v in (dataset.observations, dataset.actions))
            if isinstance(settings, MopoConfig) or self.config.world_model is not None:
                self.model = load_world_model(folder, self.data).requires_grad_(False)
            empty = torch.zeros(1, 2 * dataset.obs_dim + dataset.act_dim + 2)
            if isinstance(settings, ModelFreeConfig):
                self.policy = make_model_free(settings, empty, dataset.obs_dim, dataset.act_dim, 0).policy
            else:
                assert self.model is not None
                rule = TERMINATIONS[make_environment(self.record["dataset"]["env"]).config.termination]
                self.algorithm = make_algorithm(settings, empty, self.model, rule, self.config.seed)
                self.policy = self.algorithm.policy
            if isinstance(self.algorithm, Rma):
                self.adaptation = self.algorithm.adaptation
                self.adaptation.load_state_dict(load_checkpoint(folder / "adaptation.safetensors"))
                self.history = random_histories(dataset, self.adaptation.window)
        self.policy.load_state_dict(load_checkpoint(policy or folder / "policy.safetensors"))

    @property
    def sac(self) -> Sac:
        """The policy of an algorithm that is built on SAC."""
        assert isinstance(self.policy, Sac), "only such a run is asked for it"
        return self.policy


def new_demonstrated(settings: Any, robot: RobotDescription) -> Learner:
    """An untrained learner of an algorithm with demonstrations."""
    generator = torch.Generator()
    if isinstance(settings, NppacConfig):
        return PriorActorCritic(robot.obs_dim, robot.act_dim, settings, generator)
    if isinstance(settings, OnlineAwacConfig):
        return new_awac(settings, robot.obs_dim, robot.act_dim, generator)
    return Sac(torch.zeros(robot.obs_dim), torch.ones(robot.obs_dim), robot.act_dim, settings.sac, generator)


def near_and_far(dataset: TransitionDataset) -> tuple[Tensor, Tensor]:
    """Observations of demonstrations and, every second row, of places `FAR` standard deviations away from them.

    Returns:
        Observations and commands, `(PARITY_ROWS, dim)` each.
    """
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(dataset), PARITY_ROWS)
    away = generator.standard_normal((PARITY_ROWS, dataset.obs_dim)) * (np.arange(PARITY_ROWS) % 2)[:, None]
    obs = dataset.observations[rows] + FAR * dataset.observations.std(0) * away
    return torch.from_numpy(obs.astype(np.float32)), torch.from_numpy(dataset.actions[rows])


def random_motion(task: Environment | OpenTask) -> tuple[Tensor, Tensor]:
    """Observations and commands of robots that move at random from their starts: `(PARITY_ROWS, dim)` each."""
    generator = np.random.default_rng(0)
    robots = robots_of(task, RANDOM_ROBOTS, 0)
    actions = generator.uniform(-1.0, 1.0, (PARITY_ROWS // RANDOM_ROBOTS, RANDOM_ROBOTS, task.act_dim))
    seen = [robots.start(), *(robots.step(action).obs for action in actions)]
    robots.close()
    obs, action = (torch.from_numpy(np.concatenate(values)).float() for values in (seen[:-1], task.commands(actions)))
    return obs, action


def random_histories(dataset: TransitionDataset, window: int) -> Tensor:
    """Histories of transitions drawn from a log, as many absent as there may be: `(PARITY_ROWS, window * width)`."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(dataset), (PARITY_ROWS, window))
    parts = (dataset.observations, dataset.actions, dataset.next_observations)
    present = generator.integers(1, window + 1, (PARITY_ROWS, 1)) > np.arange(window)[::-1]
    history = transitions(*(torch.from_numpy(part[rows]) for part in parts)) * torch.from_numpy(present)[..., None]
    return history.flatten(1)
