"""What a policy is worth where there is no environment to try it in: by the log, and by a world model.

Fitted Q evaluation (fqe.py) asks the log alone. Model rollouts ask a world model from the first states of episodes that
it was not fitted to; how far its members disagree along the way tells whether the policy stays where the log speaks.
Both are guesses with errors of their own, so `surefoot select` shows both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from adapters.datasets import TransitionDataset
from offline_train.data import Data
from offline_train.evaluate import Imagined, imagine, usual_disagreement
from offline_train.fqe import FqeConfig, first_values
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule
from offline_train.models.penalties import PENALTIES

Act = Callable[[Tensor], Tensor]
"""A deterministic policy, observations `(batch, obs_dim)` to actions `(batch, act_dim)` in [-1, 1]."""


class RolloutConfig(BaseModel):
    """Settings of the model rollouts that policies are compared by, the same for all."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(default=200, ge=1, description="length of a rollout")
    penalty: str = Field(default="ensemble_std", description="uncertainty penalty by name")
    penalty_weight: float = Field(default=0.0, ge=0, description="lambda in r - lambda u; 0 for the bare reward")

    @field_validator("penalty")
    @classmethod
    def _known_penalty(cls, name: str) -> str:
        if name not in PENALTIES:
            raise ValueError(f"there is no such penalty; choose one of {', '.join(PENALTIES)}")
        return name


class OfflineEvaluation:
    """One log, and a world model of it, that policies are compared by.

    Args:
        data: the log.
        model: fitted to it; None where policies are compared by the log alone.
        terminated: the environment's rule.
        fqe: settings of fitted Q evaluation.
        rollouts: settings of the model rollouts.
        seed: of both, so that every policy meets the same draws.
    """

    def __init__(
        self,
        data: Data,
        model: DynamicsEnsemble | None,
        terminated: TerminationRule,
        fqe: FqeConfig,
        rollouts: RolloutConfig,
        seed: int,
    ) -> None:
        self.model, self.terminated, self.seed = model, terminated, seed
        self.fqe, self.rollouts = fqe, rollouts
        self.log, holdout = data.batch(data.dataset), data.batch(data.holdout)
        self.starts = self.log.obs[first_rows(data.dataset)]
        self.held_out_starts = holdout.obs[first_rows(data.holdout)]
        self.usual = None if model is None else usual_disagreement(model, holdout)

    def fitted_values(self, act: Act, report: Callable[[int], None] = lambda updates: None) -> Tensor:
        """Discounted returns by fitted Q evaluation, one for each first state of the log, `(episodes,)`."""
        return first_values(act, self.log, self.starts, self.fqe, self.seed, report)

    def imagined(self, act: Act) -> Imagined:
        """Rollouts in the worlds of the model's elites from the held-out first states, `(elites, starts)` each."""
        assert self.model is not None, "asked only where there is a world model"
        settings = self.rollouts
        return imagine(
            self.model,
            act,
            self.held_out_starts,
            steps=settings.steps,
            seed=self.seed,
            penalty=settings.penalty,
            penalty_weight=settings.penalty_weight,
            terminated=self.terminated,
        )

    def model_returns(self, imagined: Imagined) -> Tensor:
        """Returns of rollouts, less their penalty, one for each held-out first state, `(held-out episodes,)`."""
        return self.rollouts.steps * imagined.penalised.mean(0)

    def relative_disagreement(self, imagined: Imagined) -> float:
        """How much the members disagree along rollouts, as a multiple of that on held-out rows of the log."""
        assert self.usual is not None, "asked only where there is a world model"
        return float(imagined.disagreement.mean()) / self.usual


def first_rows(part: TransitionDataset) -> Tensor:
    """The first row of every episode, `(episodes,)`."""
    return torch.tensor([rows.start for rows in part.episode_slices()])
