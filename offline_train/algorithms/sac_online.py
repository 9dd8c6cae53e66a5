"""Soft actor-critic online: the policy learns from what it does itself in the simulator (Haarnoja et al. 2018).

It makes the behaviour policies whose data offline training starts from, and shows what learning in the simulator
itself reaches, in the original world or in a changed one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.datasets import Metadata, TransitionDataset
from offline_train.algorithms.online import Online, OnlineConfig
from offline_train.algorithms.sac import Sac, SacConfig
from offline_train.replay import Batch
from sim.environments import Environment
from sim.gymnasium_tasks import OpenTask
from sim.online_robots import OnlineRobots


class OnlineSacConfig(OnlineConfig):
    """Settings of SAC in the simulator."""

    name: Literal["sac"] = "sac"
    updates: int = Field(default=120_000, ge=1, description="gradient steps in all")
    batch_size: int = Field(default=128, ge=2, description="transitions a gradient step")
    robots: int = Field(default=10, ge=1, description="robots simulated side by side")
    steps_per_update: int = Field(default=2, ge=1, description="control steps for each gradient step; divides robots")
    snapshot_every: int = Field(default=10, ge=1, description="epochs between two kept behaviour policies")
    keep_replay: bool = Field(default=False, description="keep all that the robots did as a data set")
    sac: SacConfig = SacConfig(hidden=[128, 128], learning_rate=5e-4, target_entropy=None, initial_temperature=0.1)

    def new_learner(self, obs_dim: int, act_dim: int, generator: torch.Generator) -> Sac:
        """An untrained learner, which reads observations as they are."""
        return Sac(torch.zeros(obs_dim), torch.ones(obs_dim), act_dim, self.sac, generator)


class OnlineSac(Online):
    """SAC with its robots.

    Args:
        config: settings.
        robots: what it learns on.
        seed: of everything that is random here.
        device: where the networks and the replay live.
        start: state of a learner to go on from, None for one that knows nothing.
    """

    config: OnlineSacConfig

    def __init__(
        self,
        config: OnlineSacConfig,
        robots: OnlineRobots,
        seed: int,
        device: str = "cpu",
        start: dict[str, Any] | None = None,
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        with torch.device(device):
            self.sac = config.new_learner(robots.obs_dim, robots.act_dim, generator)
        if start is not None:
            self.sac.load_state_dict(start)
        self.starts_anew = start is None
        super().__init__(config, self.sac, robots, generator)

    def first_actions(self, obs: Tensor) -> Tensor:
        """Actions before the first update: at random, or of the earlier policy."""
        return super().first_actions(obs) if self.starts_anew else self.explore(obs)

    def log(self, task: Environment | OpenTask, source: str) -> TransitionDataset:
        """Return all that the robots did, robot after robot, as a data set.

        Args:
            task: what they did.
            source: what its metadata says of where it is from.
        """
        replay = self.replay
        rows = replay.rows[: replay.size].unflatten(0, (-1, self.config.robots)).transpose(0, 1).flatten(0, 1)
        did = Batch.unpack(rows.cpu(), task.obs_dim, task.act_dim)
        terminals = did.terminal == 1
        # Where the next row does not go on from this one, the episode was cut off, or the next robot's rows begin.
        cut = torch.ones_like(terminals)
        cut[:-1] = (did.next_obs[:-1] != did.obs[1:]).any(1)
        arrays = {
            "observations": did.obs.numpy(),
            "actions": task.commands(did.action.numpy()),
            "rewards": did.reward.numpy(),
            "next_observations": did.next_obs.numpy(),
            "terminals": terminals.numpy(),
            "timeouts": (cut & ~terminals).numpy(),
        }
        metadata = Metadata(task.name, task.control_dt, task.observation_names, task.action_names, source)
        return TransitionDataset.from_arrays(arrays, metadata, "the replay")
