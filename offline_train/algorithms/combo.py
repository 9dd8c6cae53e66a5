"""COMBO: conservative offline model-based policy optimisation (Yu et al. 2021, arXiv 2102.08363).

MOPO's rollouts without a penalty, and critics that are conservative where the rollouts go instead (equation 2),

    minimise  beta ( E[ Q(s, a) ] - E_log[ Q(s, a) ] )  +  E[ (Q - y)^2 ]:

the first mean is over observations of the model rollouts, and is CQL's log int exp Q(s, a) da there (cql.py), which
weighs the actions that the critics value most; the second is over the log's own rows; the Bellman error is over both,
a share f (`real_fraction`) of them from the log. So the critics are low where the model was asked, and not at what the
log has shown. As in CQL no entropy is backed up. The paper has 1/2 before the last term: its beta is half of this one.

The paper's own code is not public. f, beta and the horizon are those of OfflineRL-Kit (run_example/run_combo.py) for
HalfCheetah medium-replay, as are the widths and step sizes; it writes the last term as here. Unlike here its default
takes the integral over the log's observations, too, where the paper has the rollouts' alone, and its actor's step size
falls along a cosine.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from offline_train.algorithms.cql import Cql, CqlConfig, conservative_loss
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.sac import SacConfig, critic_loss


class ComboConfig(MopoConfig):
    """Settings beyond MOPO's."""

    name: Literal["combo"] = "combo"  # type: ignore[assignment]
    real_fraction: float = Field(default=0.5, gt=0, lt=1, description="f, share of a batch that is real")
    penalty: str | None = Field(default=None, description="uncertainty penalty by name; COMBO has none")
    penalty_weight: float = Field(default=0.0, ge=0, description="lambda, where there is one")
    conservative_weight: float = Field(default=0.5, ge=0, description="beta, how conservative the critics are")
    samples: int = Field(
        default=10, ge=1, description="actions drawn from each of three distributions for the integral"
    )
    actor_rate: float = Field(default=1e-4, gt=0, description="Adam's step size for actor and temperature")
    sac: SacConfig = SacConfig(hidden=[256, 256, 256], target_entropy=None)

    @model_validator(mode="after")
    def _both_kinds_in_a_batch(self) -> ComboConfig:
        if not 0 < round(self.batch_size * self.real_fraction) < self.batch_size:
            raise ValueError("real_fraction must leave a real row and one of the model in every batch")
        return self


class ComboCql(Cql):
    """CQL whose integral is over the rollouts' observations and whose logged actions are the real rows' alone.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and every action.
        real_rows: how many rows of a batch, the first ones, are real.
    """

    def __init__(
        self,
        obs_mean: Tensor,
        obs_std: Tensor,
        act_dim: int,
        config: CqlConfig,
        generator: torch.Generator,
        *,
        real_rows: int,
    ) -> None:
        super().__init__(obs_mean, obs_std, act_dim, config, generator)
        self.real_rows = real_rows

    def _critic_losses(self, obs: Tensor, next_obs: Tensor, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        values, real = self.critics(obs, action), self.real_rows
        drawn = self._draw_values(obs[real:], next_obs[real:])
        penalty = self.penalty_weight * conservative_loss(*drawn, values[:, :real])
        return {"critic_loss": critic_loss(values, target), "conservative_loss": penalty}


class Combo(Mopo):
    """MOPO's rollouts with a conservative learner; takes what `Mopo` takes."""

    config: ComboConfig

    def _make_learner(self) -> ComboCql:
        config = self.config
        conservative = CqlConfig(
            penalty_weight=config.conservative_weight,
            samples=config.samples,
            actor_rate=config.actor_rate,
            sac=config.sac,
        )
        real_rows = self.replay.real_rows(config.batch_size)
        return ComboCql(*self._input_scale(), self.act_dim, conservative, self.generator, real_rows=real_rows)
