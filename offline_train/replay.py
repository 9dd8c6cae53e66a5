"""Transitions as one packed tensor, so that a batch is one `index_select`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """A batch of transitions: `(batch, obs_dim)`, `(batch, act_dim)`, `(batch,)`, `(batch, obs_dim)`, `(batch,)`.

    `terminal` is 1.0 where bootstrapping stops and 0.0 elsewhere.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminal: Tensor

    @staticmethod
    def unpack(rows: Tensor, obs_dim: int, act_dim: int) -> Batch:
        """Split packed rows `[obs, action, reward, next_obs, terminal]` into views."""
        obs, action, reward, next_obs, terminal = rows.split([obs_dim, act_dim, 1, obs_dim, 1], dim=-1)
        return Batch(obs, action, reward.squeeze(-1), next_obs, terminal.squeeze(-1))

    def pack(self) -> Tensor:
        """The inverse of `unpack`."""
        return torch.cat([self.obs, self.action, self.reward[:, None], self.next_obs, self.terminal[:, None]], dim=-1)


class Replay:
    """A ring of transitions.

    Args:
        capacity: transitions kept; the oldest give way.
        obs_dim: size of an observation.
        act_dim: size of an action.
        device: where they live.
    """

    def __init__(self, capacity: int, obs_dim: int, act_dim: int, device: torch.device | str = "cpu") -> None:
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.rows = torch.zeros(capacity, 2 * obs_dim + act_dim + 2, device=device)
        self.size = 0
        self.position = 0

    def add(self, transitions: Batch) -> None:
        """Append transitions, overwriting the oldest where the ring is full."""
        rows = transitions.pack()[-len(self.rows) :]
        first = min(len(rows), len(self.rows) - self.position)
        self.rows[self.position : self.position + first] = rows[:first]
        self.rows[: len(rows) - first] = rows[first:]
        self.position = (self.position + len(rows)) % len(self.rows)
        self.size = min(self.size + len(rows), len(self.rows))

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw uniformly with replacement."""
        return Batch.unpack(draw(self.rows, self.size, batch_size, generator), self.obs_dim, self.act_dim)

    def state_dict(self) -> dict[str, Tensor | int]:
        """What a checkpoint needs."""
        return {"rows": self.rows[: self.size].clone(), "size": self.size, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` gave."""
        self.size, self.position = state["size"], state["position"]
        self.rows[: self.size] = state["rows"]


class ModelReplay(Replay):
    """A ring of model rollouts beside a fixed set of real transitions, which a checkpoint leaves out.

    Args:
        real: packed real transitions `(rows, 2 obs_dim + act_dim + 2)`.
        capacity: model transitions kept; the oldest give way.
        obs_dim: size of an observation.
        act_dim: size of an action.
        real_fraction: share of every batch that comes from `real`.
    """

    def __init__(self, real: Tensor, capacity: int, obs_dim: int, act_dim: int, real_fraction: float) -> None:
        super().__init__(capacity, obs_dim, act_dim, real.device)
        self.real, self.real_fraction = real, real_fraction

    def real_rows(self, batch_size: int) -> int:
        """How many rows of a batch are real, once there are rollouts."""
        return round(batch_size * self.real_fraction)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw uniformly with replacement, `real_fraction` of the rows, the first ones, from the real transitions."""
        n_real = self.real_rows(batch_size) if self.size else batch_size
        rows = draw(self.real, len(self.real), n_real, generator)
        if n_real < batch_size:
            rows = torch.cat([rows, draw(self.rows, self.size, batch_size - n_real, generator)])
        return Batch.unpack(rows, self.obs_dim, self.act_dim)


def draw(rows: Tensor, size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` of the first `size` rows, uniformly with replacement."""
    return rows.index_select(0, torch.randint(size, (count,), generator=generator, device=rows.device))
