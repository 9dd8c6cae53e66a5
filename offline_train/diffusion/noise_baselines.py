"""Noise on the log's own rows: what SynthER is compared with (Lu et al. 2023, appendix D.1).

Each takes packed rows `[obs, action, reward, next_obs, terminal]` and changes observation and next observation, or the
latter alone. They are pure functions of the rows and the generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offline_train.algorithms.augwm import draw_scaling
from offline_train.replay import Batch

ADDITIVE_STD = 0.1
MULTIPLIER_RANGE = (0.8, 1.2)
SCALING_RANGE = (0.5, 1.5)


def additive_noise(batch: Batch, generator: torch.Generator) -> Batch:
    """S + e and s' + e' with e, e' ~ N(0, 0.1^2) (RAD, Laskin et al. 2020, in the observations' units)."""
    noise = torch.randn(2, *batch.obs.shape, generator=generator, device=batch.obs.device)
    return batch._replace(obs=batch.obs + ADDITIVE_STD * noise[0], next_obs=batch.next_obs + ADDITIVE_STD * noise[1])


def multiplicative_noise(batch: Batch, generator: torch.Generator) -> Batch:
    """E s and e s' with one e ~ Unif([0.8, 1.2]) for each transition (RAD, Laskin et al. 2020)."""
    e = draw_scaling(len(batch.obs), 1, *MULTIPLIER_RANGE, "uniform", generator, shared=True)
    return batch._replace(obs=e * batch.obs, next_obs=e * batch.next_obs)


def dynamics_noise(batch: Batch, generator: torch.Generator) -> Batch:
    """S + z (s' - s) with z ~ Unif([0.5, 1.5]) for each dimension, as AugWM has it (Ball et al. 2021).

    SynthER's appendix writes a single e; z is per dimension in AugWM itself.
    """
    rows, dims = batch.obs.shape
    z = draw_scaling(rows, dims, *SCALING_RANGE, "uniform", generator, shared=False)
    return batch._replace(next_obs=torch.lerp(batch.obs, batch.next_obs, z))


NOISES = {
    "additive-noise": additive_noise,
    "multiplicative-noise": multiplicative_noise,
    "dynamics-noise": dynamics_noise,
}


def noisy_rows(name: str, log: Tensor, obs_dim: int, act_dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw packed rows of the log, uniformly with replacement, and put noise on them.

    Args:
        name: of the noise, one of `NOISES`.
        log: packed rows.
        obs_dim: size of an observation.
        act_dim: size of an action.
        count: how many rows.
        generator: draws rows and noise.
    """
    index = torch.randint(len(log), (count,), generator=generator, device=log.device)
    return NOISES[name](Batch.unpack(log.index_select(0, index), obs_dim, act_dim), generator).pack()
