"""AugWM: a policy conditioned on how the dynamics have changed (Ball et al. 2021, "Augmented World Models").

MOPO, with dynamics amplitude scaling (DAS) in the update batch: every transition, real or from the model, is seen as
if the environment changed its state z times as much,

    (s, a, r, s')  ->  ([s; z], a, r, [s + z (s' - s); z]),    z ~ Unif([z_low, z_high]^obs_dim),

elementwise, z drawn afresh for every transition and dimension. Actor and both critics read z; rollouts are made with
z = 1 and stored as the model gives them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.replay import Batch


class AugWmConfig(MopoConfig):
    """Settings of AugWM beyond MOPO's."""

    name: Literal["augwm"] = "augwm"  # type: ignore[assignment]
    z_low: float = Field(0.5, gt=0, description="smallest scaling of the change of state")
    z_high: float = Field(1.5, gt=0, description="largest scaling")
    nominal_fraction: float = Field(0.0, ge=0, le=1, description="share of a batch that is left as it is, z = 1")

    estimator: str = Field("scale", description="context estimator that the bundle carries (deploy/context.py)")
    estimator_settings: dict[str, Any] = Field(default_factory=dict, description="its settings")

    @model_validator(mode="after")
    def _range_holds_one(self) -> AugWmConfig:
        if not self.z_low <= 1.0 <= self.z_high:
            raise ValueError(f"z_low={self.z_low} and z_high={self.z_high} must enclose 1, the unchanged dynamics")
        return self


def draw_scaling(
    rows: int, obs_dim: int, low: float, high: float, nominal_fraction: float, generator: torch.Generator
) -> Tensor:
    """Draw z `(rows, obs_dim)`, uniform in [low, high] per row and dimension; the first rows' share is ones."""
    z = torch.rand(rows, obs_dim, generator=generator, device=generator.device) * (high - low) + low
    z[: round(rows * nominal_fraction)] = 1.0
    return z


def amplitude_scaling(batch: Batch, z: Tensor) -> Batch:
    """DAS: scale the change of state by z `(batch, obs_dim)` and append z to both observations.

    Reward, action and terminal stay as they were, the terminal that of the unscaled next state.
    """
    next_obs = torch.addcmul(batch.obs, z, batch.next_obs - batch.obs)
    return batch._replace(obs=torch.cat([batch.obs, z], -1), next_obs=torch.cat([next_obs, z], -1))


class AugWm(Mopo):
    """MOPO whose learner sees scaled transitions and their scaling."""

    config: AugWmConfig

    @property
    def context_dim(self) -> int:
        """One scaling per observation dimension."""
        return self.obs_dim

    def _input_scale(self) -> tuple[Tensor, Tensor]:
        mean, std = super()._input_scale()
        spread = max((self.config.z_high - self.config.z_low) / 12**0.5, 1e-3)
        return torch.cat([mean, torch.ones_like(mean)]), torch.cat([std, torch.full_like(std, spread)])

    def _policy_input(self, obs: Tensor) -> Tensor:
        return torch.cat([obs, torch.ones_like(obs)], -1)

    def _learning_batch(self, batch: Batch) -> Batch:
        config = self.config
        z = draw_scaling(
            len(batch.obs), self.obs_dim, config.z_low, config.z_high, config.nominal_fraction, self.generator
        )
        # A batch holds its real rows first, so the nominal share is spread over both kinds by a permutation.
        return amplitude_scaling(batch, z[torch.randperm(len(z), generator=self.generator, device=z.device)])
