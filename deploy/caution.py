"""Smaller commands for a body that answers to them more than it used to: one that has become light turns over.

What a robot's motors push against the ground moves its body, and a body of half the mass it moves twice as much. No
gain of a motor says so, for the joints themselves answer much as before. What says so is by how much more the body
moves than the world model f predicts, gains as inferred included: over the terms of the observation that are the
body's velocity along the ground and its turning,

    dv_t ~ z f_v(o_t, g a_t),

with one z for all of them, fitted by least squares over the past, each step weighted by forgetting^age and by the
predicted variance times s2, where s2 >= 1 is how much larger than predicted the residual is, and with a prior at z = 1.
(The velocity upwards is left out: gravity makes it, whatever the mass.) The command is the share

    c = clip( 1 - strength max(z - 1 - slack, 0), least, 1 )

of the way from the safe command to the policy's. Without evidence, and for a body that answers as before or less, that
is all of it. results/README.md has what it gives.

All state has the leading shape `batch`; shapes in the docstrings leave it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.context.estimator import PredictChange, usable
from deploy.spec import CautionSpec


class Caution:
    """How much more than predicted the body answers, and the share of the policy's command that is given for it.

    Args:
        predict_change: the bundle's dynamics.
        spec: the terms that are looked at, and how to answer.
        batch: leading shape.

    Attributes:
        scale: z, `()`.
    """

    def __init__(self, predict_change: PredictChange, spec: CautionSpec, batch: tuple[int, ...] = ()) -> None:
        self.predict_change, self.spec, self.batch = predict_change, spec, batch
        self.terms = list(spec.terms)
        self.reset()

    def reset(self) -> None:
        """Forget the episode: the body answers as predicted."""
        # Discounted sums, over the terms, of w p p, w p v, w v v and of 1, for predicted p and observed v.
        self.sums = np.zeros((4, *self.batch))
        self.scale = np.ones(self.batch)

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Take in one transition.

        Args:
            obs: `(obs_dim,)`.
            action: what the motors delivered, as far as that is known, `(act_dim,)` in command units.
            next_obs: `(obs_dim,)`.
            valid: `()` bool; lanes where it is False are left alone.
        """
        change, std = self.predict_change(obs, action)
        observed = np.asarray(next_obs, dtype=np.float64) - obs
        terms = [np.asarray(v, dtype=np.float64)[..., self.terms] for v in (change, observed, std)]
        _, valid = usable(valid, *terms)
        predicted, moved, std = (np.where(valid[..., None], v, 1.0) for v in terms)
        weight = 1.0 / np.square(std)
        products = weight * predicted**2, weight * predicted * moved, weight * moved**2, np.ones_like(std)
        new = np.stack([values.sum(-1) for values in products])
        self.sums = np.where(valid, self.spec.forgetting * self.sums + new, self.sums)
        square, product, energy, count = self.sums
        residual = energy - 2.0 * self.scale * product + self.scale**2 * square
        noise = np.maximum(residual / np.maximum(count, 1.0), 1.0)
        prior = noise / self.spec.prior_std**2
        self.scale = (product + prior) / (square + prior)

    @property
    def share(self) -> np.ndarray:
        """c, the share of the policy's command that is given, `()`."""
        beyond = np.maximum(self.scale - 1.0 - self.spec.slack, 0.0)
        return np.clip(1.0 - self.spec.strength * beyond, self.spec.least, 1.0)
