"""How good a policy is while it is trained: in the world model from held-out states, and in MuJoCo."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from offline_train.algorithms.mopo import Mopo
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule
from offline_train.models.penalties import Prediction, measure
from offline_train.models.rollout import rollout
from offline_train.replay import Batch
from sim.environments import Environment
from sim.perturb import NOMINAL, Perturbation
from sim.perturbed_plant import PerturbedPlant
from sim.worlds import timeline

MODEL_STARTS, MODEL_HORIZON = 200, 50


def model_return(algorithm: Mopo, holdout_obs: Tensor, seed: int) -> float:
    """Mean pessimistic reward a step of the deterministic policy in model rollouts from held-out states.

    Args:
        algorithm: whose policy and world model are looked at.
        holdout_obs: observations of held-out episodes `(rows, obs_dim)`.
        seed: of the start states and of the model's noise, so that two looks can be compared.
    """
    generator = torch.Generator(holdout_obs.device).manual_seed(seed)
    chosen = torch.randint(len(holdout_obs), (MODEL_STARTS,), generator=generator, device=holdout_obs.device)
    steps = rollout(
        algorithm.model,
        holdout_obs[chosen],
        lambda obs, _: algorithm.act_nominal(obs),
        generator,
        horizon=MODEL_HORIZON,
        penalty=algorithm.config.penalty,
        pessimism=algorithm.pessimistic,
        terminated=algorithm.terminated,
    )
    return float(torch.cat([batch.reward for batch, _ in steps]).mean())


class Imagined(NamedTuple):
    """Rollouts of a policy in the worlds of an ensemble's elites, means over the steps, `(elites, starts)` each.

    Attributes:
        reward: r, 0 after a termination, so that policies are compared over equal times.
        penalised: r - lambda u, what the policy is trained for, likewise.
        disagreement: of the members, over the steps before a termination.
    """

    reward: Tensor
    penalised: Tensor
    disagreement: Tensor


def disagreement(mean: Tensor, target_std: Tensor) -> Tensor:
    """How far the members' mean predictions `(members, batch, dims)` lie apart, `(batch,)`.

    It is their standard deviation, in standard deviations of the targets, averaged over dimensions.
    """
    return (mean.std(0) / target_std).mean(-1)


@torch.no_grad()
def imagine(
    model: DynamicsEnsemble,
    act: Callable[[Tensor], Tensor],
    starts: Tensor,
    *,
    steps: int,
    seed: int,
    penalty: str | None,
    penalty_weight: float,
    terminated: TerminationRule,
) -> Imagined:
    """Roll a policy out in every elite's own world, the same noise in each whatever the policy.

    A rollout that draws a member anew at every step would average over worlds; one that stays with a member asks what
    would be if that one were right.

    Args:
        model: the ensemble.
        act: observations `(batch, obs_dim)` to actions `(batch, act_dim)` in [-1, 1].
        starts: first observations `(starts, obs_dim)`.
        steps: length of a rollout.
        seed: of the noise.
        penalty: name of the uncertainty penalty u; None for none.
        penalty_weight: lambda.
        terminated: the environment's rule.
    """
    generator = torch.Generator().manual_seed(seed)
    elites = len(model.elite_index)
    member, row = model.elite_index.repeat_interleave(len(starts)), torch.arange(elites * len(starts))
    obs, alive = starts.repeat(elites, 1), torch.ones(len(row))
    totals, lived = torch.zeros(3, len(row)), torch.zeros(len(row))
    for _ in range(steps):
        mean, std = model.predict(obs, act(obs))
        change = mean[member, row] + std[member, row] * torch.randn(mean.shape[1:], generator=generator)
        reward, uncertainty = change[:, -1], measure(penalty, Prediction(mean, std, member, change), generator)
        figures = (reward, reward - penalty_weight * uncertainty, disagreement(mean, model.target_std))
        totals += alive * torch.stack(figures)
        lived += alive
        obs = obs + alive[:, None] * change[:, :-1]
        alive = alive * (~terminated(obs)).float()
    spans = torch.stack([torch.full_like(lived, steps), torch.full_like(lived, steps), lived])
    return Imagined(*(totals / spans).view(3, elites, -1))


@torch.no_grad()
def usual_disagreement(model: DynamicsEnsemble, holdout: Batch) -> float:
    """Mean disagreement of the members on held-out rows of the log."""
    return float(disagreement(model.predict(holdout.obs, holdout.action)[0], model.target_std).mean())


def simulator_return(
    act: Callable[[Tensor], Tensor],
    environment: Environment,
    episodes: int,
    seed: int,
    steps: int = 1_000,
    world: Perturbation = NOMINAL,
) -> float:
    """Mean return of a deterministic policy over whole episodes in one world.

    Args:
        act: `(batch, obs_dim) -> (batch, act_dim)` in [-1, 1].
        environment: the task.
        episodes: how many, run side by side.
        seed: of the start states.
        steps: length of an episode that does not end before.
        world: the original one or a changed one, without noise.
    """
    returns, alive = np.zeros(episodes), np.ones(episodes, dtype=bool)
    with PerturbedPlant(environment, [timeline(environment, world)] * episodes) as plant:
        obs = plant.reset(environment.initial_states(np.random.default_rng(seed), episodes), generators=[])
        for _ in range(steps):
            action = act(torch.from_numpy(obs).float()).numpy()
            obs, reward, terminated = plant.step(environment.commands(action))
            returns += alive * reward
            alive &= ~terminated
            if not alive.any():
                break
    return float(returns.mean())
