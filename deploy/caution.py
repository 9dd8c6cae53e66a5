"""Smaller commands for a body that has become light, as soon as its motion leaves what the world model knows.

What motors push against the ground moves the body, and a light body more than before; driven as hard as ever it turns
over. No gain of a motor says so, for the joints answer much as before. Two things together do.

The body answers more than predicted. Over the terms of the observation that are its velocity along the ground and its
turning (that upwards gravity makes, whatever the mass), the change is z times what the world model f predicts, gains as
inferred included,

    dv_t ~ z f_v(o_t, g a_t),

with z fitted by least squares over the past, each step weighted by forgetting^age and by the predicted variance times
s2, where s2 >= 1 is how much larger than predicted the residual is, and with a prior at z = 1.

Its motion is one of which the model is unsure. With s the model's predicted standard deviation, and what is usual of it
along the policy's own motion in the original world (`surefoot export` rolls that out in the model),

    x_t = rms_i( s_i / usual_i ),        e_t = clip( 2 (x_t / limit - 1), 0, 1 ),

where 98 of 100 usual steps are below the limit. m is a running mean of e that rises fast and falls slowly, so that a
command that has become small does not become large again at once. Either alone misleads: a light torso on heavy legs
answers more and runs well, and noisy sensors or heavy bodies make the model unsure. The command is the share

    c = clip( 1 - strength clip( (m - 0.02) / 0.08, 0, 1 ) max(z - 1 - slack, 0), least, 1 )

of the way from the safe command to the policy's. results/halfcheetah-practised/README.md has what it gives.

All state has the leading shape `batch`; shapes in the docstrings leave it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.context.estimator import PredictChange, usable
from deploy.spec import CautionSpec

# Mean excess up to which motion is the usual one, and from which it is wild without doubt.
CALM, WILD = 0.02, 0.1


class Caution:
    """How light the body is and how unusual its motion, and the share of the policy's command that is given for it.

    Args:
        predict_change: the bundle's dynamics.
        spec: the terms that are looked at, what is usual, and how to answer.
        batch: leading shape.

    Attributes:
        scale: z, `()`.
        unusual: m, `()`.
    """

    def __init__(self, predict_change: PredictChange, spec: CautionSpec, batch: tuple[int, ...] = ()) -> None:
        self.predict_change, self.spec, self.batch = predict_change, spec, batch
        self.terms, self.usual = list(spec.terms), np.array(spec.usual)
        self.reset()

    def reset(self) -> None:
        """Forget the episode: the body answers as predicted, and its motion is the usual one."""
        # Discounted sums, over the terms, of w p p, w p v, w v v and of 1, for predicted p and observed v.
        self.sums = np.zeros((4, *self.batch))
        self.scale = np.ones(self.batch)
        self.unusual, self.steps = np.zeros(self.batch), np.zeros(self.batch)

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Take in one transition.

        Args:
            obs: `(obs_dim,)`.
            action: what the motors delivered, as far as that is known, `(act_dim,)` in command units.
            next_obs: `(obs_dim,)`.
            valid: `()` bool; lanes where it is False are left alone.
        """
        values = [np.asarray(v, dtype=np.float64) for v in (*self.predict_change(obs, action), next_obs - obs)]
        _, valid = usable(valid, *values)
        valid = valid & (values[1] > 0).all(-1)
        predicted, std, moved = (np.where(valid[..., None], v, 1.0) for v in values)
        self._fit(predicted[..., self.terms], std[..., self.terms], moved[..., self.terms], valid)
        ratio = np.sqrt(np.square(std / self.usual).mean(-1))
        excess = np.where(valid, np.clip(2.0 * (ratio / self.spec.limit - 1.0), 0.0, 1.0), self.unusual)
        # At the start of an episode the mean is a plain average: some robots turn over within a second.
        self.steps = self.steps + valid
        span = np.where(excess > self.unusual, self.spec.attack, self.spec.release)
        self.unusual = self.unusual + (excess - self.unusual) / np.maximum(np.minimum(span, self.steps), 1.0)

    def _fit(self, predicted: np.ndarray, std: np.ndarray, moved: np.ndarray, valid: np.ndarray) -> None:
        """Take predicted and observed changes of the terms into the sums, and solve for z."""
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
        wild = np.clip((self.unusual - CALM) / (WILD - CALM), 0.0, 1.0)
        held_back = self.spec.strength * wild * np.maximum(self.scale - 1.0 - self.spec.slack, 0.0)
        return np.clip(1.0 - held_back, self.spec.least, 1.0)
