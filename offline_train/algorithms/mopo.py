"""MOPO: model-based offline policy optimisation (Yu et al. 2020, algorithm 2).

A policy is trained by SAC on short rollouts of the world model, branched from real states, whose reward is lowered by
the model's own uncertainty:

    r~(s, a) = r(s, a) - lambda u(s, a).

Without the penalty it is MBPO (Janner et al. 2019, arXiv 1906.08253) on a fixed log, as MOPO's authors compare with:
`algorithm=mbpo` is this learner with no penalty.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from deploy.spec import ContextSpec, RobotDescription
from offline_train.algorithms.base import mean_figures
from offline_train.algorithms.sac import Sac, SacConfig, with_context
from offline_train.models.ensemble import DynamicsEnsemble, ModelStep, TerminationRule
from offline_train.models.penalties import PENALTIES
from offline_train.models.rollout import UNCHANGED, rollout
from offline_train.replay import Batch, ModelReplay, draw


class MopoConfig(BaseModel):
    """Settings of MOPO.

    The defaults are the authors' for HalfCheetah "mixed", but for lambda (theirs: 1), fewer updates and starts
    (1,000,000 and 50,000) and the averaged actor.
    """

    model_config = ConfigDict(extra="forbid")

    name: Literal["mopo", "mbpo"] = "mopo"
    updates: int = Field(default=40_000, ge=1, description="gradient steps in all")
    steps_per_epoch: int = Field(default=1_000, ge=1, description="gradient steps between two generations of rollouts")
    batch_size: int = Field(default=256, ge=2, description="transitions a gradient step")
    real_fraction: float = Field(default=0.05, ge=0, le=1, description="share of a batch that is real")
    horizon: int = Field(default=5, ge=1, description="steps of a model rollout")
    rollout_starts: int = Field(default=10_000, ge=1, description="real states that rollouts branch from, every epoch")
    retain_epochs: int = Field(default=5, ge=1, description="epochs of rollouts kept")
    penalty: str | None = Field(default="max_aleatoric", description="uncertainty penalty by name; None for none")
    penalty_weight: float = Field(default=0.5, ge=0, description="lambda")
    sac: SacConfig = SacConfig()

    def context_spec(self, robot: RobotDescription) -> ContextSpec | None:
        """What the policy reads beside the observation, None where that is all."""
        return None

    @model_validator(mode="after")
    def _penalty_as_named(self) -> MopoConfig:
        if (self.name, self.penalty is None) in (("mopo", True), ("mbpo", False)):
            raise ValueError("penalty is null for mbpo and named for mopo; choose the algorithm by its name")
        return self

    @field_validator("penalty")
    @classmethod
    def _known_penalty(cls, name: str | None) -> str | None:
        if name is not None and name not in PENALTIES:
            raise ValueError(f"there is no such penalty; choose one of {', '.join(PENALTIES)}, or null for none")
        return name


def penalised(step: ModelStep, weight: float) -> ModelStep:
    """The reward r - lambda u in the place of r (section 4.2 of the paper); `weight` is lambda."""
    return step._replace(reward=step.reward - weight * step.penalty)


class Mopo:
    """The learner with its model rollouts; one call of `train_epoch` is one generation of rollouts and its updates.

    What AugWM adds goes into the methods with an underscore, which do nothing here. MOReL has another `pessimistic`,
    MABE and COMBO another learner.

    Args:
        config: settings.
        real: packed real transitions `(rows, 2 obs_dim + act_dim + 2)`.
        model: the fitted world model.
        terminated: the environment's rule on next observations.
        seed: of everything that is random here.

    Attributes:
        change: what a rollout's context does to the world model.
    """

    change = UNCHANGED

    def __init__(
        self, config: MopoConfig, real: Tensor, model: DynamicsEnsemble, terminated: TerminationRule, seed: int
    ) -> None:
        self.config, self.model, self.terminated = config, model, terminated
        self.obs_dim, self.act_dim = model.obs_dim, model.act_dim
        self.generator = torch.Generator(real.device).manual_seed(seed)
        capacity = config.retain_epochs * config.rollout_starts * config.horizon
        kept = self._kept(Batch.unpack(real, self.obs_dim, self.act_dim), None)
        self.replay = ModelReplay(kept.pack(), capacity, kept.obs.shape[1], self.act_dim, config.real_fraction)
        with torch.device(real.device):
            self.sac = self._make_learner()
        self.updates = 0

    @property
    def policy(self) -> Sac:
        """What a finished run keeps."""
        return self.sac

    @property
    def context_dim(self) -> int:
        """Size of the context that the policy reads; 0 where it reads none."""
        return 0

    @property
    def policy_updates(self) -> int:
        """Gradient steps of the policy; what else is learned comes after them."""
        return self.config.updates

    @property
    def finished(self) -> bool:
        """Whether the budget of updates is spent."""
        return self.updates >= self.config.updates

    def pessimistic(self, step: ModelStep) -> ModelStep:
        """What the learner is told of a step of the model."""
        return penalised(step, self.config.penalty_weight)

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Go on from MOPO's networks; a context, which these do not read, begins without effect.

        Args:
            state: of MOPO's learner, with hidden layers of the same widths.
        """
        scale = {"obs_mean": self.sac.obs_mean, "obs_std": self.sac.obs_std}
        own = self.sac.state_dict()
        self.sac.load_state_dict(own | with_context(state, self.obs_dim, self.context_dim) | scale)

    def _make_learner(self) -> Sac:
        return Sac(*self._input_scale(), self.act_dim, self.config.sac, self.generator)

    def _input_scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what the policy reads."""
        return self.model.input_mean[: self.obs_dim], self.model.input_std[: self.obs_dim]

    def _rollout_context(self, rows: int) -> Tensor | None:
        """The context of each of `rows` rollouts; None where all are made in the original world."""
        return None

    def _policy_input(self, obs: Tensor, context: Tensor | None) -> Tensor:
        """What the policy reads in a model rollout at observations `(batch, obs_dim)` under a context."""
        return obs

    def _kept(self, batch: Batch, context: Tensor | None) -> Batch:
        """What the replay keeps of transitions that were made under a context, None for the original world."""
        return batch

    def _learning_batch(self, batch: Batch) -> Batch:
        """What the learner sees of a batch from the replay."""
        return batch

    def train_epoch(self) -> dict[str, float]:
        """Generate rollouts, then update; returns the means of the epoch's figures."""
        config = self.config
        starts = draw(self.replay.real, len(self.replay.real), config.rollout_starts, self.generator)
        rewards = []
        for transitions, context in rollout(
            self.model,
            starts[:, : self.obs_dim],
            lambda obs, context: self.sac.explore(self._policy_input(obs, context)),
            self.generator,
            horizon=config.horizon,
            penalty=config.penalty,
            pessimism=self.pessimistic,
            terminated=self.terminated,
            context=self._rollout_context(config.rollout_starts),
            change=self.change,
        ):
            self.replay.add(self._kept(transitions, context))
            rewards.append(transitions.reward.mean())
        budget = min(config.steps_per_epoch, self.policy_updates - self.updates)
        figures = mean_figures(self._update() for _ in range(budget))
        self.updates += budget
        return {"rollout_reward": float(torch.stack(rewards).mean()), **figures}

    def _update(self) -> dict[str, Tensor]:
        batch = self.replay.sample(self.config.batch_size, self.generator)
        return self.sac.update(self._learning_batch(batch))

    @torch.no_grad()
    def act(self, obs: Tensor, context: Tensor | None = None) -> Tensor:
        """The deterministic action `(batch, act_dim)` in [-1, 1] for raw observations (and contexts)."""
        return self.sac(obs if context is None else torch.cat([obs, context], -1))

    @torch.no_grad()
    def act_nominal(self, obs: Tensor) -> Tensor:
        """The deterministic action for the original dynamics."""
        return self.sac(self._policy_input(obs.to(self.sac.obs_mean.device), None)).to(obs.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        return {
            "sac": self.sac.state_dict(),
            "optimizer": self.sac.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.sac.load_state_dict(state["sac"])
        self.sac.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]
