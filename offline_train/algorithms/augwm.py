"""AugWM: a policy conditioned on how the dynamics have changed (Ball et al. 2021, "Augmented World Models").

MOPO, with dynamics amplitude scaling (DAS) in the update batch: every transition, real or from the model, is seen as
if the environment changed its state z times as much,

    (s, a, r, s')  ->  ([s; z], a, r, [s + z (s' - s); z]),

elementwise, z drawn afresh for every transition and dimension. Actor and both critics read z.

As published (configs/algorithm/augwm-published.yaml) z ~ Unif([z_low, z_high]^obs_dim), and rollouts are made with
z = 1. Then the critics are asked about scaled next states that no rollout visits, and the actor at other z proposes
actions that the model is never asked about. Three options close that gap: `scaled_rollouts` makes a share of the
rollouts under a drawn z, `shared` draws one z for all dimensions, which is what the `shared_scale` estimator can tell
on a robot, and `nested` draws are dense around z = 1, where most robots are. `nominal` is a gain margin: told that the
robot moves a little more than it does, the policy acts with more care than the world model asks for.
What each gives: results/halfcheetah-mixed/README.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from deploy.context import complete_settings, require_estimator
from deploy.spec import ContextSpec, RobotDescription
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.models.rollout import Change
from offline_train.replay import Batch

Draw = Literal["uniform", "nested"]


class AugWmConfig(MopoConfig):
    """Settings of AugWM beyond MOPO's."""

    name: Literal["augwm"] = "augwm"  # type: ignore[assignment]
    z_low: float = Field(default=0.5, gt=0, description="smallest scaling of the change of state")
    z_high: float = Field(default=1.5, gt=0, description="largest scaling")
    nominal: float = Field(default=1.0, description="what the policy is told at the original dynamics")
    shared: bool = Field(default=False, description="whether all dimensions share one z")
    draw: Draw = Field(default="uniform", description="uniform, or nested: each row in a random share of the range")
    scaled_rollouts: float = Field(default=0.0, ge=0, le=1, description="share of the rollouts made under a drawn z")
    estimator: str = Field(default="shared_scale", description="context estimator that the bundle carries")
    estimator_settings: dict[str, Any] = Field(default_factory=dict, description="its settings")

    @model_validator(mode="after")
    def _makes_sense(self) -> AugWmConfig:
        if not self.z_low <= 1.0 <= self.z_high:
            raise ValueError(f"z_low={self.z_low} and z_high={self.z_high} must enclose 1, the unchanged dynamics")
        if not self.z_low <= self.nominal <= self.z_high:
            raise ValueError(f"nominal={self.nominal} must lie between z_low={self.z_low} and z_high={self.z_high}")
        require_estimator(self.estimator, "delta_scale", self.estimator_settings)
        return self

    def context_spec(self, robot: RobotDescription) -> ContextSpec:
        """One scaling for each observation dimension."""
        return ContextSpec(
            kind="delta_scale",
            dim=robot.obs_dim,
            nominal=(self.nominal,) * robot.obs_dim,
            low=(self.z_low,) * robot.obs_dim,
            high=(self.z_high,) * robot.obs_dim,
            estimator=self.estimator,
            settings=complete_settings(self.estimator, self.estimator_settings),
        )


def draw_scaling(
    rows: int, dims: int, low: float, high: float, draw: Draw, generator: torch.Generator, *, shared: bool
) -> Tensor:
    """Draw z `(rows, dims)`, afresh for every row and dimension, or for every row alone where it is `shared`.

    `uniform` is Unif([low, high]); `nested` is Unif([1 - w (1 - low), 1 + w (high - 1)]) with a width w ~ Unif([0, 1])
    of each row's own.
    """
    device = generator.device
    z = torch.rand(rows, 1 if shared else dims, generator=generator, device=device) * (high - low) + low
    if draw == "nested":
        z = 1.0 + torch.rand(rows, 1, generator=generator, device=device) * (z - 1.0)
    return z.expand(rows, dims)


def amplitude_scaling(batch: Batch, z: Tensor) -> Batch:
    """DAS: scale the change of state by z `(batch, obs_dim)` and append z to both observations.

    Reward, action and terminal stay as they were, the terminal that of the unscaled next state.
    """
    next_obs = torch.addcmul(batch.obs, z, batch.next_obs - batch.obs)
    return batch._replace(obs=torch.cat([batch.obs, z], -1), next_obs=torch.cat([next_obs, z], -1))


class AugWm(Mopo):
    """MOPO whose learner sees scaled transitions and their scaling; takes what `Mopo` takes."""

    config: AugWmConfig
    change = Change(motion=torch.lerp)

    @property
    def context_dim(self) -> int:
        """One scaling per observation dimension."""
        return self.obs_dim

    def _input_scale(self) -> tuple[Tensor, Tensor]:
        mean, std = super()._input_scale()
        spread = max((self.config.z_high - self.config.z_low) / 12**0.5, 1e-3)
        return torch.cat([mean, torch.ones_like(mean)]), torch.cat([std, torch.full_like(std, spread)])

    def _draw(self, rows: int) -> Tensor:
        config = self.config
        return draw_scaling(
            rows, self.obs_dim, config.z_low, config.z_high, config.draw, self.generator, shared=config.shared
        )

    def _rollout_context(self, rows: int) -> Tensor | None:
        share = self.config.scaled_rollouts
        if share == 0.0:
            return None
        scaled = torch.rand(rows, 1, generator=self.generator, device=self.generator.device) < share
        return torch.where(scaled, self._draw(rows), 1.0)

    def _policy_input(self, obs: Tensor, context: Tensor | None) -> Tensor:
        return torch.cat([obs, torch.ones_like(obs) if context is None else context], -1)

    def _learning_batch(self, batch: Batch) -> Batch:
        return amplitude_scaling(batch, self._draw(len(batch.obs)))

    @torch.no_grad()
    def act_nominal(self, obs: Tensor) -> Tensor:
        """The deterministic action for the original dynamics."""
        known = obs.to(self.sac.obs_mean.device)
        return self.act(known, torch.full_like(known, self.config.nominal)).to(obs.device)
