"""Fitted Q evaluation: what a finished policy is worth, from the log alone (Le et al. 2019, arXiv 1903.08738).

Q^pi is the fixed point of the policy's own Bellman equation, and is fitted to the log's transitions:

    L = E[ ( r + gamma (1 - d) Q'(s', pi(s')) - Q(s, a) )^2 ],

where Q' follows Q slowly. In the publication every iteration is a regression to its end; one gradient step with a
target network in its place is what Paine et al. 2020 (arXiv 2007.09055) choose policies with. The policy's value is
Q(s0, pi(s0)) at the first states of the log's episodes. Nothing but the log is asked, so the value is a guess wherever
the policy's actions lie far from the log's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from offline_train.algorithms.base import bellman_target, move_towards
from offline_train.algorithms.model_free import STD_MARGIN
from offline_train.networks import Mlp
from offline_train.replay import Batch, draw

# Rows of the log whose next actions are asked at once, and updates between two reports.
CHUNK, REPORT_EVERY = 10_000, 250


class FqeConfig(BaseModel):
    """Settings of fitted Q evaluation."""

    model_config = ConfigDict(extra="forbid")

    updates: int = Field(default=10_000, ge=1, description="gradient steps")
    batch_size: int = Field(default=256, ge=2, description="transitions a gradient step")
    hidden: list[int] = Field(default=[128, 128], description="width of each hidden layer")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's step size")
    discount: float = Field(default=0.99, ge=0, lt=1, description="gamma, the weight of the next step's value")
    target_rate: float = Field(default=0.05, gt=0, le=1, description="how far the target moves at every update")


def evaluation_loss(value: Tensor, reward: Tensor, terminal: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """E[ ( r + gamma (1 - d) Q'(s', pi(s')) - Q(s, a) )^2 ] (Le et al. 2019, algorithm 3, line 5).

    Args:
        value: Q of the log's own actions, `(batch,)`.
        reward: `(batch,)`.
        terminal: `(batch,)`, 1 where bootstrapping stops.
        next_value: the target's value of the policy's actions at the next states, `(batch,)`.
        discount: gamma.
    """
    return (value - bellman_target(reward, terminal, next_value, discount)).square().mean()


class FittedQ(nn.Module):
    """The action value of one policy, in the reward's units.

    It begins near the value of the log's mean reward for ever, and is fitted in units of what one standard deviation of
    reward would add for ever, so that rewards of any size are learned alike and the start is not far off.

    Args:
        log: the transitions.
        config: settings.
        generator: draws the initial weights.
    """

    def __init__(self, log: Batch, config: FqeConfig, generator: torch.Generator) -> None:
        super().__init__()
        ahead = 1.0 / (1.0 - config.discount)
        self.offset = ahead * float(log.reward.mean())
        self.scale = ahead * (float(log.reward.std(unbiased=False)) + STD_MARGIN)
        self.obs_mean, self.obs_std = log.obs.mean(0), log.obs.std(0, unbiased=False) + STD_MARGIN
        self.network = Mlp([log.obs.shape[1] + log.action.shape[1], *config.hidden, 1], generator)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the value `(batch,)` of actions `(batch, act_dim)` at raw observations `(batch, obs_dim)`."""
        inputs = torch.cat([(obs - self.obs_mean) / self.obs_std, action], -1)
        return self.offset + self.scale * self.network(inputs).squeeze(-1)


def fit_q(
    act: Callable[[Tensor], Tensor],
    log: Batch,
    config: FqeConfig,
    seed: int,
    report: Callable[[int], None] = lambda updates: None,
) -> FittedQ:
    """Fit the action value of a deterministic policy to a log.

    Args:
        act: the policy, `(batch, obs_dim) -> (batch, act_dim)` in [-1, 1].
        log: transitions, with actions in [-1, 1].
        config: settings.
        seed: of the initial weights and the batches.
        report: called with the gradient steps done, from time to time.

    Returns:
        The target, which averages over the last updates.
    """
    generator = torch.Generator().manual_seed(seed)
    learned = FittedQ(log, config, generator)
    target = copy.deepcopy(learned).requires_grad_(False)
    optimizer = torch.optim.Adam(learned.parameters(), lr=config.learning_rate, fused=True)
    obs_dim, act_dim = log.obs.shape[1], log.action.shape[1]
    with torch.no_grad():
        following = torch.cat([act(obs) for obs in log.next_obs.split(CHUNK)])
    rows = torch.cat([log.pack(), following], 1)
    for update in range(1, config.updates + 1):
        drawn = draw(rows, len(rows), config.batch_size, generator)
        batch, next_action = Batch.unpack(drawn[:, :-act_dim], obs_dim, act_dim), drawn[:, -act_dim:]
        with torch.no_grad():
            next_value = target(batch.next_obs, next_action)
        value = learned(batch.obs, batch.action)
        loss = evaluation_loss(value, batch.reward, batch.terminal, next_value, config.discount) / learned.scale**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        move_towards(target, learned, config.target_rate)
        if update % REPORT_EVERY == 0 or update == config.updates:
            report(update)
    return target


@torch.no_grad()
def first_values(
    act: Callable[[Tensor], Tensor],
    log: Batch,
    starts: Tensor,
    config: FqeConfig,
    seed: int,
    report: Callable[[int], None] = lambda updates: None,
) -> Tensor:
    """The discounted return that fitted Q evaluation expects of a policy from each of `starts`, `(starts,)`.

    Args:
        act: the policy, `(batch, obs_dim) -> (batch, act_dim)` in [-1, 1].
        log: transitions, with actions in [-1, 1].
        starts: first observations `(starts, obs_dim)`.
        config: settings.
        seed: of the fit.
        report: called with the gradient steps done, from time to time.
    """
    with torch.enable_grad():
        q = fit_q(act, log, config, seed, report)
    return q(starts, act(starts))
