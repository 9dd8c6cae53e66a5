"""What a generative model sees of a transition: the columns that change, standardised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Added to standard deviations, as in the published code.
STD_MARGIN = 1e-5


class RowScale(nn.Module):
    """Packed rows `[obs, action, reward, next_obs, terminal]` to standardised ones and back.

    A column that never changes, such as the terminals of a robot that never falls, is not modelled: what is decoded
    has its one value. Terminals that do change stay as they are, 0 or 1, and what is decoded is 1 above 0.5 (SynthER,
    appendix A). Decoded actions are held to the range of those seen; the published code does not do that.

    Args:
        columns: of a packed row.
        obs_dim: size of an observation.
        act_dim: size of an action.
    """

    mean: Tensor
    std: Tensor
    changes: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, obs_dim: int, act_dim: int) -> None:
        super().__init__()
        columns = 2 * obs_dim + act_dim + 2
        self.actions = slice(obs_dim, obs_dim + act_dim)
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))
        self.register_buffer("changes", torch.ones(columns, dtype=torch.bool))
        self.register_buffer("action_low", torch.zeros(act_dim))
        self.register_buffer("action_high", torch.zeros(act_dim))

    @property
    def dim(self) -> int:
        """How many columns are modelled."""
        return int(self.changes.sum())

    def fit(self, rows: Tensor) -> RowScale:
        """Take means, standard deviations and ranges from packed rows; returns itself."""
        self.changes.copy_(rows.amax(0) > rows.amin(0))
        self.mean.copy_(torch.where(self.changes, rows.mean(0), rows[0]))
        self.std.copy_(rows.std(0, unbiased=False) + STD_MARGIN)
        if self.changes[-1]:
            self.mean[-1], self.std[-1] = 0.0, 1.0
        actions = rows[:, self.actions]
        self.action_low.copy_(actions.amin(0))
        self.action_high.copy_(actions.amax(0))
        return self

    def encode(self, rows: Tensor) -> Tensor:
        """Packed rows `(batch, columns)` to modelled ones `(batch, dim)`."""
        return ((rows - self.mean) / self.std)[:, self.changes]

    def decode(self, modelled: Tensor) -> Tensor:
        """The inverse of `encode`, with terminals 0 or 1 and actions within the range of those seen."""
        rows = self.mean.repeat(len(modelled), 1)
        rows[:, self.changes] += modelled * self.std[self.changes]
        rows[:, -1] = (rows[:, -1] > 0.5).to(rows.dtype)
        rows[:, self.actions] = rows[:, self.actions].clamp(self.action_low, self.action_high)
        return rows
