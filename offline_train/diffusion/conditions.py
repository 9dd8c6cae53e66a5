"""What transitions can be asked for: of good episodes, surprising ones, or of changed worlds. Beyond the paper.

The model learns rows together with a condition, and draws them under one (classifier-free guidance, synther.py):

- `return`: the return of the row's episode,
- `td-error`: |r + gamma (1 - d) min Q'(s', pi(s')) - min Q(s, a)| under the critics of an earlier run,
- `context`: AugWM's z. Rows are learned as s + z (s' - s), z ~ Unif([0.5, 1.5]) for all dimensions of a row alike.

Returns and errors are told as ranks among the log's, so that what is asked for means the same for every log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from adapters.datasets import TransitionDataset
from adapters.errors import UserError
from offline_train.algorithms.augwm import draw_scaling
from offline_train.algorithms.base import bellman_target
from offline_train.diffusion.fit import Examples
from offline_train.diffusion.noise_baselines import SCALING_RANGE
from offline_train.diffusion.transition_model import Wish
from offline_train.finished_run import Run
from offline_train.networks import Critics
from offline_train.replay import Batch

TD_CHUNK = 10_000


class ConditionConfig(BaseModel):
    """Settings; configs/upsample.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["return", "td-error", "context"]
    low: float = Field(description="least of what is asked for: a rank from 0 to 1, or z")
    high: float = Field(description="most of it")
    weight: float = Field(default=1.0, ge=0, description="1: as the condition has it; more: further that way; 0: not")
    run: Path | None = Field(default=None, description="td-error: folder of a finished run that has critics")

    @model_validator(mode="after")
    def _makes_sense(self) -> ConditionConfig:
        least, most = SCALING_RANGE if self.name == "context" else (0.0, 1.0)
        if not least <= self.low <= self.high <= most:
            raise ValueError(f"low={self.low} and high={self.high} must be in order and within {least} and {most}")
        if (self.name == "td-error") != (self.run is not None):
            raise ValueError("run, an earlier run with critics, goes with name=td-error and with no other")
        return self


class Condition(ABC):
    """One thing that rows can be asked for.

    Args:
        config: what is asked for.
    """

    def __init__(self, config: ConditionConfig) -> None:
        self.config = config

    @abstractmethod
    def examples(self, part: TransitionDataset, rows: Tensor) -> Examples:
        """Packed rows of a part of the log with their conditions."""

    def wish(self, count: int, generator: torch.Generator) -> Wish:
        """What is asked for of each of `count` rows, uniform over what the settings say."""
        low, high = self.config.low, self.config.high
        asked = low + (high - low) * torch.rand(count, 1, generator=generator, device=generator.device)
        return Wish(self.encode(asked), self.config.weight)

    @abstractmethod
    def encode(self, asked: Tensor) -> Tensor:
        """Ranks or z `(batch, 1)` to what networks read, within [-1, 1]."""


class RankCondition(Condition):
    """A figure of each row, told as its rank among those of the training part.

    Args:
        config: what is asked for.
        figures: gives each row's figure `(rows,)` for a part of the log.
        train: the training part.
    """

    def __init__(
        self, config: ConditionConfig, figures: Callable[[TransitionDataset], np.ndarray], train: TransitionDataset
    ) -> None:
        super().__init__(config)
        self.figures, self.known = figures, np.sort(figures(train))

    def examples(self, part: TransitionDataset, rows: Tensor) -> Examples:
        """The rows as they are, with their ranks."""
        told = self.encode(torch.from_numpy(ranks(self.figures(part), self.known))[:, None].to(rows))
        return Examples(rows, lambda drawn, index, generator: (drawn, told.index_select(0, index)))

    def encode(self, asked: Tensor) -> Tensor:
        """Ranks within [0, 1] to [-1, 1]."""
        return 2.0 * asked - 1.0


class ContextCondition(Condition):
    """How much a changed world moves the state, of what the original one does.

    Args:
        config: what is asked for.
        obs_dim: size of an observation.
        act_dim: size of an action.
    """

    def __init__(self, config: ConditionConfig, obs_dim: int, act_dim: int) -> None:
        super().__init__(config)
        self.obs_dim, self.act_dim = obs_dim, act_dim

    def examples(self, part: TransitionDataset, rows: Tensor) -> Examples:
        """The rows as a changed world would have them, with its z, drawn afresh every time."""

        def change(drawn: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            batch = Batch.unpack(drawn, self.obs_dim, self.act_dim)
            z = draw_scaling(len(drawn), 1, *SCALING_RANGE, "uniform", generator, shared=True)
            return batch._replace(next_obs=torch.lerp(batch.obs, batch.next_obs, z)).pack(), self.encode(z)

        return Examples(rows, change)

    def encode(self, asked: Tensor) -> Tensor:
        """Z within [0.5, 1.5] to [-1, 1]."""
        return 2.0 * (asked - 1.0)


def make_condition(config: ConditionConfig, train: TransitionDataset) -> Condition:
    """The condition that the settings are of.

    Raises:
        UserError: the run that `td-error` needs has no critics.
    """
    if config.name == "context":
        return ContextCondition(config, train.obs_dim, train.act_dim)
    if config.name == "return":
        return RankCondition(config, returns_of_rows, train)
    assert config.run is not None, "settings without one are refused"
    run = Run(config.run)
    return RankCondition(config, lambda part: td_errors(run, part), train)


def ranks(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The share of sorted known values `(m,)` below each value `(n,)`, half of those equal to it included: `(n,)`."""
    below, upto = (np.searchsorted(known, values, side) for side in ("left", "right"))
    return (below + upto) / (2.0 * len(known))


def returns_of_rows(dataset: TransitionDataset) -> np.ndarray:
    """The undiscounted return of each row's episode, `(N,)`."""
    lengths = [rows.stop - rows.start for rows in dataset.episode_slices()]
    return np.repeat(dataset.episode_returns(), lengths)


@torch.no_grad()
def td_errors(run: Run, dataset: TransitionDataset) -> np.ndarray:
    """|r + gamma (1 - d) min_i Q'_i(s', pi(s')) - min_i Q_i(s, a)| of each row, `(N,)`.

    Raises:
        UserError: the run's policy has no critics with targets, or reads more than observations.
    """
    policy, data = run.policy, run.data
    critics, targets = (getattr(policy, name, None) for name in ("critics", "target_critics"))
    if data is None or not isinstance(critics, Critics) or not isinstance(targets, Critics):
        raise UserError("td-error needs a run with critics that learned from a log, such as one of td3-bc; give that.")
    if len(policy.obs_mean) != dataset.obs_dim:
        raise UserError("td-error needs a run whose critics read observations alone, such as one of td3-bc.")
    settings = run.record["config"]["algorithm"]
    discount = settings.get("discount", settings.get("sac", {}).get("discount", 0.99))
    errors = []
    for rows in data.packed(dataset).split(TD_CHUNK):
        batch = Batch.unpack(rows, dataset.obs_dim, dataset.act_dim)
        following = targets(policy.normalise(batch.next_obs), policy(batch.next_obs)).amin(0)
        target = bellman_target(batch.reward, batch.terminal, following, discount)
        errors.append((target - critics(policy.normalise(batch.obs), batch.action).amin(0)).abs())
    return torch.cat(errors).numpy()
