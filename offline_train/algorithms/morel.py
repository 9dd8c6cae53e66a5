"""MOReL: model-based offline reinforcement learning (Kidambi et al. 2020, arXiv 2005.05951).

Where the members of the ensemble disagree too much, the model does not know, and the rollout ends in an absorbing state
HALT that is worth little:

    u(s, a) = max_ij || mu_i(s, a) - mu_j(s, a) ||_2 > threshold:    r + r_halt, and the episode is over,

elsewhere reward and next state are the model's own. HALT is worth nothing after that, so what a policy forgoes there is
all that it would have earned on the way.

The threshold comes from the log, as in the code of Lu et al. 2022 ("Revisiting Design Choices in Offline Model-Based
RL"), which puts robust statistics in the place of mean and maximum: with the median and the median absolute deviation
(MAD) of u over the log,

    threshold = median + beta MAD,    beta = share beta_max,    beta_max = (99th percentile - median) / MAD,

with a share of 0.3. That is a way of 0.3 from the median to the 99th percentile: the MAD itself cancels. That code
takes the rows that the model was not fitted to; here a sample of those that it was fitted to, where the members agree a
little more, so the threshold is a little lower. A share of 0.3 is pessimistic: a fifth of the shipped log is unknown by
it, and at a share of 1 by definition a hundredth.

The paper improves the policy by natural gradients on rollouts of whole episodes; here, as in that code, SAC learns
on short rollouts from states of the log.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.models.ensemble import DynamicsEnsemble, ModelStep, TerminationRule
from offline_train.models.rollout import CHUNK
from offline_train.replay import Batch, draw

# Rows of the log that the threshold is taken from.
THRESHOLD_ROWS = 20_000


class MorelConfig(MopoConfig):
    """Settings beyond MOPO's; share and reward of HALT are those of the code of Lu et al. 2022."""

    name: Literal["morel"] = "morel"  # type: ignore[assignment]
    penalty: str = Field(default="max_pairwise_difference", description="what is compared with the threshold, by name")
    penalty_weight: float = Field(default=0.0, ge=0, description="lambda, where known states are penalised too")
    threshold_share: float = Field(
        default=0.3, ge=0, description="where the threshold lies between median (0) and 99th percentile (1) of the log"
    )
    halt_reward: float = Field(default=-10.0, le=0, description="what is added to the reward of a step to HALT")


def halt_threshold(penalties: Tensor, share: float) -> Tensor:
    """Median + share (99th percentile - median) of the log's penalties `(rows,)`."""
    median, high = penalties.quantile(torch.tensor([0.5, 0.99], device=penalties.device))
    return median + share * (high - median)


def halted(step: ModelStep, threshold: Tensor, reward: float) -> ModelStep:
    """End a step in HALT where its penalty is above the threshold.

    Args:
        step: of the model.
        threshold: above which a state and action are unknown, a scalar.
        reward: what HALT adds to the reward.
    """
    unknown = (step.penalty > threshold).float()
    return step._replace(reward=step.reward + reward * unknown, terminal=step.terminal.maximum(unknown))


class Morel(Mopo):
    """MOPO's learner on rollouts that end where the model does not know; takes what `Mopo` takes.

    Attributes:
        threshold: above which a state and action are unknown.
    """

    config: MorelConfig

    def __init__(
        self, config: MorelConfig, real: Tensor, model: DynamicsEnsemble, terminated: TerminationRule, seed: int
    ) -> None:
        super().__init__(config, real, model, terminated, seed)
        # A function of log and model alone, so that a resumed run has the same one.
        generator = torch.Generator(real.device).manual_seed(0)
        log = Batch.unpack(draw(real, len(real), THRESHOLD_ROWS, generator), self.obs_dim, self.act_dim)
        with torch.no_grad():
            steps = [
                model.step(obs, action, generator, penalty=config.penalty, terminated=terminated)
                for obs, action in zip(log.obs.split(CHUNK), log.action.split(CHUNK), strict=True)
            ]
        self.threshold = halt_threshold(torch.cat([step.penalty for step in steps]), config.threshold_share)

    def pessimistic(self, step: ModelStep) -> ModelStep:
        """What the learner is told of a step of the model."""
        return halted(super().pessimistic(step), self.threshold, self.config.halt_reward)
