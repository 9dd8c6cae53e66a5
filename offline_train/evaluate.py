"""How good a policy is while it is trained: in the world model from held-out states, and in MuJoCo."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from offline_train.algorithms.mopo import Mopo
from offline_train.models.rollout import rollout
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
            action = act(torch.from_numpy(obs).float()).cpu().numpy()
            obs, reward, terminated = plant.step(environment.commands(action))
            returns += alive * reward
            alive &= ~terminated
            if not alive.any():
                break
    return float(returns.mean())
