"""Rollouts of a policy in the world model: torch from end to end, in chunks that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from offline_train.models.ensemble import DynamicsEnsemble, ModelStep, TerminationRule
from offline_train.replay import Batch

# Rows evaluated together: about a thousand keep an ensemble's activations in a core's cache.
CHUNK = 1_000

# Steps at which the drift of the model from held-out episodes is looked at.
HORIZONS = (1, 5, 20, 50)

Policy = Callable[[Tensor, Tensor | None], Tensor]
"""Observations `(batch, obs_dim)` and contexts `(batch, context_dim)` or None to actions `(batch, act_dim)`."""


class Change(NamedTuple):
    """How a context changes the world model; None where it does not.

    Attributes:
        command: actions `(batch, act_dim)` and contexts to the actions that the actuators carry out.
        motion: observations and next observations `(batch, obs_dim)` and contexts to where the robot gets to.
    """

    command: Callable[[Tensor, Tensor], Tensor] | None = None
    motion: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


UNCHANGED = Change()


@torch.no_grad()
def rollout(
    model: DynamicsEnsemble,
    start: Tensor,
    policy: Policy,
    generator: torch.Generator,
    *,
    horizon: int,
    penalty: str | None,
    pessimism: Callable[[ModelStep], ModelStep],
    terminated: TerminationRule,
    context: Tensor | None = None,
    change: Change = UNCHANGED,
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Branch short rollouts from real states (MOPO, Yu et al. 2020, algorithm 2).

    Args:
        model: the world model.
        start: first observations `(rows, obs_dim)`.
        policy: chooses the actions.
        generator: draws elites and noise.
        horizon: steps of each rollout.
        penalty: name of the uncertainty penalty; None where none is looked at.
        pessimism: makes what the model says worse where it is uncertain, in reward or by an end.
        terminated: the environment's rule; a rollout that terminates goes no further.
        context: of each rollout, `(rows, context_dim)`; None where the world is the original one.
        change: what the context does, so that the rollout visits what such dynamics lead to.

    Yields:
        The transitions of one step of one chunk, with the pessimistic reward and the model's own next state, and their
        contexts.
    """
    contexts = [None] * -(-len(start) // CHUNK) if context is None else context.split(CHUNK)
    for obs, z in zip(start.split(CHUNK), contexts, strict=True):
        for _ in range(horizon):
            action = policy(obs, z)
            sent = action if z is None or change.command is None else change.command(action, z)
            step = pessimism(model.step(obs, sent, generator, penalty=penalty, terminated=terminated))
            yield Batch(obs, action, step.reward, step.next_obs, step.terminal), z
            alive, visited = step.terminal == 0, step.next_obs
            if z is not None and change.motion is not None:
                visited = change.motion(obs, step.next_obs, z)
                alive &= ~terminated(visited)
            obs, z = visited[alive], None if z is None else z[alive]
            if not len(obs):
                break


@torch.no_grad()
def horizon_error(model: DynamicsEnsemble, obs: Tensor, actions: Tensor) -> dict[int, float]:
    """How far the elites' mean prediction drifts from held-out episodes when it is fed its own output.

    Args:
        model: the world model.
        obs: observations of windows of held-out episodes `(windows, max(HORIZONS) + 1, obs_dim)`.
        actions: the actions taken there `(windows, max(HORIZONS), act_dim)`.

    Returns:
        For every one of `HORIZONS`, the root mean squared error over windows and dimensions, in standard deviations
        of the observations.
    """
    std = model.input_std[: model.obs_dim]
    state, errors = obs[:, 0], {}
    for step in range(max(HORIZONS)):
        state = state + model.mean_change(state, actions[:, step])[0]
        if step + 1 in HORIZONS:
            errors[step + 1] = float((((state - obs[:, step + 1]) / std).square().mean()).sqrt())
    return errors
