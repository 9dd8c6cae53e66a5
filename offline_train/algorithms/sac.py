"""Soft actor-critic: the learner of MOPO and AugWM, of SAC-N, EDAC and CQL, and of sac_online.py in the simulator.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (twin critics, tuned temperature).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from offline_train.algorithms.base import Learner, bellman_target, move_towards
from offline_train.networks import LOG_STD_RANGE, ActionSample, Actor, Critics
from offline_train.replay import Batch


class SacConfig(BaseModel):
    """Settings of the learner."""

    model_config = ConfigDict(extra="forbid")

    hidden: list[int] = Field(default=[256, 256], description="width of each hidden layer of actor and critics")
    learning_rate: float = Field(default=3e-4, gt=0, description="Adam's step size for actor, critics and temperature")
    discount: float = Field(default=0.99, ge=0, lt=1, description="gamma, the weight of the next step's value")
    target_rate: float = Field(default=5e-3, gt=0, le=1, description="tau, how far target critics move at every update")
    target_entropy: float | None = Field(
        default=-3.0,
        description="entropy that the temperature is tuned to, in nats (MOPO: -3); None: minus the action's size",
    )
    initial_temperature: float = Field(default=1.0, gt=0, description="temperature before the first update")
    average_rate: float = Field(
        default=2e-4, gt=0, le=1, description="how far the averaged actor, the one that acts, moves at every update"
    )


def critic_target(
    reward: Tensor, terminal: Tensor, next_values: Tensor, next_log_prob: Tensor, alpha: Tensor | float, discount: float
) -> Tensor:
    """Y = r + gamma (1 - d) ( min_i Q_i(s', a') - alpha log pi(a'|s') ), equation 3 of the paper.

    Args:
        reward: `(batch,)`.
        terminal: `(batch,)`, 1 where bootstrapping stops.
        next_values: `(members, batch)`, target critics at the next observation and a fresh action.
        next_log_prob: `(batch,)`.
        alpha: temperature, a scalar.
        discount: gamma.
    """
    return bellman_target(reward, terminal, next_values.amin(0) - alpha * next_log_prob, discount)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Mean squared Bellman error of each critic, summed: `(members, batch), (batch,) -> ()` (equation 5)."""
    return (values - target).square().mean(1).sum()


def actor_loss(values: Tensor, log_prob: Tensor, alpha: Tensor | float) -> Tensor:
    """E[ alpha log pi(a|s) - min_i Q_i(s, a) ] (equation 9)."""
    return (alpha * log_prob - values.amin(0)).mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """-log_alpha E[ log pi(a|s) + target entropy ] (equation 18, in log alpha as its authors' code has it)."""
    return -(log_alpha * (log_prob + target_entropy).mean())


def anchor_loss(action: Tensor, anchor: Tensor, values: Tensor, weight: float) -> Tensor:
    """The pull w mean|Q| E[ |a - a0|^2 ], which holds a policy that is trained on to what it did before.

    It is that of TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860, w = 1 / alpha), towards an earlier policy in
    the place of the log's actions.

    Args:
        action: the policy's deterministic actions, `(batch, act_dim)`.
        anchor: the earlier policy's, `(batch, act_dim)`.
        values: of the present policy's actions, `(members, batch)`; they give the pull the size of the values.
        weight: w.
    """
    return weight * values.detach().abs().mean() * (action - anchor).square().sum(-1).mean()


class Anchor(NamedTuple):
    """What holds a policy that is trained on: its actor as it was, which stays so, and the weight of the pull."""

    actor: Actor
    weight: float


def with_context(state: dict[str, Tensor], obs_dim: int, context_dim: int) -> dict[str, Tensor]:
    """Give networks that read observations alone a context to read, which begins without effect.

    Args:
        state: a learner's `state_dict` without the input's mean and standard deviation.
        obs_dim: size of an observation.
        context_dim: how many numbers follow it in the new learner's input.

    Returns:
        The state with zeros for the weights of the context.
    """

    def widen(name: str, weight: Tensor) -> Tensor:
        if name.endswith("actor.layers.0.weight"):
            return torch.cat([weight, weight.new_zeros(len(weight), context_dim)], 1)
        if name.endswith("critics.layers.0.weight"):
            members, _, width = weight.shape
            between = weight.new_zeros(members, context_dim, width)
            return torch.cat([weight[:, :obs_dim], between, weight[:, obs_dim:]], 1)
        return weight

    return {name: widen(name, weight) for name, weight in state.items()}


class Sac(Learner):
    """Actor, critics, their targets, the temperature, and the average of the actor over past updates.

    The average is what acts deterministically and what is exported: the actor itself swings from one update to the
    next, the average of its weights does not (Polyak and Juditsky 1992; what it gives here:
    results/halfcheetah-mixed/README.md).
    What EDAC, CQL, MABE, COMBO and REDQ change goes into the methods with an underscore.

    Args:
        obs_mean: `(input_dim,)`, subtracted from every observation. `input_dim` counts context dimensions too.
        obs_std: `(input_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and every action.
        members: how many critics there are.
        log_std_range: that of the actor.

    Attributes:
        anchor: what the policy is held to, None for a policy that is trained from the start. No part of the state.
        policy_delay: gradient steps of the critics for one of actor and temperature.
    """

    anchor: Anchor | None = None
    policy_delay = 1
    actor: Actor
    updates: Tensor

    def __init__(
        self,
        obs_mean: Tensor,
        obs_std: Tensor,
        act_dim: int,
        config: SacConfig,
        generator: torch.Generator,
        *,
        members: int = 2,
        log_std_range: tuple[float, float] = LOG_STD_RANGE,
    ) -> None:
        super().__init__(obs_mean, obs_std, generator)
        self.config = config
        self.target_entropy = -float(act_dim) if config.target_entropy is None else config.target_entropy
        self.register_buffer("updates", torch.zeros(()))
        input_dim = len(obs_mean)
        self.actor = Actor(input_dim, act_dim, config.hidden, generator, log_std_range)
        self.average_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.critics = Critics(input_dim, act_dim, config.hidden, generator, members=members)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.initial_temperature)))
        # One fused Adam for all three: each loss fills the gradients of its own parameters only.
        self.optimizer = torch.optim.Adam([*self._learned()], lr=config.learning_rate, fused=True)

    def _learned(self) -> Iterator[nn.Parameter]:
        yield from self.actor.parameters()
        yield from self.critics.parameters()
        yield self.log_alpha

    def forward(self, obs: Tensor) -> Tensor:
        """Return the averaged actor's action `(batch, act_dim)` for raw observations `(batch, input_dim)`."""
        return self.average_actor(self.normalise(obs))

    @torch.no_grad()
    def explore(self, obs: Tensor) -> Tensor:
        """Draw an action `(batch, act_dim)` for raw observations `(batch, input_dim)`."""
        return self.actor.sample(self.normalise(obs), self.generator).action

    def train_on(self, state: dict[str, Tensor], weight: float) -> None:
        """Begin to train a finished policy further: its averaged actor is where the actor starts and what holds it.

        Args:
            state: what `state_dict` gave.
            weight: of the pull in `anchor_loss`.
        """
        self.load_state_dict(state)
        self.actor.load_state_dict(self.average_actor.state_dict())
        self.updates.zero_()
        self.anchor = Anchor(copy.deepcopy(self.average_actor), weight)

    def update(self, batch: Batch, step: int = 0) -> dict[str, Tensor]:
        """One gradient step of critics, with every `policy_delay`-th of actor and temperature, then of the targets.

        The step is simultaneous: the actor is improved against the critics as they were at the start of the step.

        Args:
            batch: transitions.
            step: gradient steps before this one.

        Returns:
            Figures of the step as scalars still on the device, so that nobody waits for them unasked.
        """
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        alpha = self.log_alpha.detach().exp()
        target = self._target(batch, next_obs, alpha)
        self.optimizer.zero_grad()
        losses = self._critic_losses(obs, next_obs, batch.action, target)
        torch.stack([*losses.values()]).sum().backward()

        figures = {name: loss.detach() for name, loss in losses.items()}
        figures |= {"target_value": target.mean(), "alpha": alpha}
        if improve := (step + 1) % self.policy_delay == 0:
            figures |= self._improve_policy(obs, alpha)
        self.optimizer.step()
        self._move_targets()
        if improve:
            self._move_average()
        return figures

    def _improve_policy(self, obs: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """Fill the gradients of actor and temperature; `obs` is standardised."""
        proposal = self._propose(obs)
        self.critics.requires_grad_(False)
        values = self._judged(self.critics(obs, proposal.action))
        self.critics.requires_grad_(True)
        policy_loss = actor_loss(values, proposal.log_prob, alpha) + self._pull(obs, values)
        entropy_loss = temperature_loss(self.log_alpha, proposal.log_prob.detach(), self.target_entropy)
        (policy_loss + entropy_loss).backward()
        return {"actor_loss": policy_loss.detach(), "entropy": -proposal.log_prob.detach().mean()}

    def _judged(self, values: Tensor) -> Tensor:
        """The values `(members, batch)` of which the actor improves the smallest."""
        return values

    def _propose(self, obs: Tensor) -> ActionSample:
        """Actions for standardised observations, and what stands for log pi in the losses: here itself."""
        return self.actor.sample(obs, self.generator)

    def _pull(self, obs: Tensor, values: Tensor) -> Tensor | float:
        """What the policy's loss has besides, a scalar: here what holds a policy that is trained on."""
        if self.anchor is None:
            return 0.0
        return anchor_loss(self.actor(obs), self.anchor.actor(obs), values, self.anchor.weight)

    @torch.no_grad()
    def _target(self, batch: Batch, next_obs: Tensor, alpha: Tensor) -> Tensor:
        """What the critics learn, `(batch,)`; `next_obs` is standardised."""
        following = self._propose(next_obs)
        next_values = self._next_values(next_obs, following.action)
        return critic_target(batch.reward, batch.terminal, next_values, following.log_prob, alpha, self.config.discount)

    def _next_values(self, next_obs: Tensor, action: Tensor) -> Tensor:
        """Target values `(members, batch)` of which the smallest is bootstrapped from."""
        return self.target_critics(next_obs, action)

    def _critic_losses(self, obs: Tensor, next_obs: Tensor, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The parts of the critics' loss by name: here the Bellman error alone."""
        return {"critic_loss": critic_loss(self.critics(obs, action), target)}

    def _move_targets(self) -> None:
        move_towards(self.target_critics, self.critics, self.config.target_rate)

    @torch.no_grad()
    def _move_average(self) -> None:
        self.updates += 1
        # A plain average at first, so that the random initial weights leave no trace in it.
        rate = self.updates.reciprocal().clamp(min=self.config.average_rate)
        for average, learned in zip(self.average_actor.parameters(), self.actor.parameters(), strict=True):
            average.lerp_(learned, rate)
