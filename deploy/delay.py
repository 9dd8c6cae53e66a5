"""Commands that act late: how late is found from the world model's predictions, and the policy answers what will be.

With a delay of d control periods between an observation and the effect of the command that answers it, whichever of
sensor, computer and motor is late, the robot moves under the world model f as

    o_{t+1} - o_t = f(o_t, a_{t-d}).

So the d in force is the one whose commands explain the motion best. Commands that are under way are known, so where the
robot will be when the next one acts can be predicted, and the policy is asked there (Smith 1957, "Closer Control of
Loops with Dead Time"):

    o^_t = o_t,    o^_{t+i+1} = o^_{t+i} + f(o^_{t+i}, a_{t+i-d})  for i = 0 .. d-1.

All state has the leading shape `batch`; shapes in the docstrings leave it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.context.estimator import PredictChange, usable
from deploy.spec import DelaySpec

# Transitions before the first estimate, so that a start from rest, which fits every delay, decides nothing.
WARM_UP = 5


class DelayCompensator:
    """Finds the delay of a loop and predicts over it; without a delay it changes nothing.

    Every delay d from none to the longest is scored by its discounted squared residual e_d, in predicted variances,
    with respect to what all of them leave unexplained, e_d / (1 + mean e): a step that no delay explains, be it for a
    glitch or for other dynamics, then counts alike for all. Another delay is taken where its score is clearly below
    the present one's.

    Args:
        predict_change: the bundle's dynamics.
        act_dim: size of a command.
        spec: the longest delay and how it is estimated.
        batch: leading shape.

    Attributes:
        delay: the present estimate in control periods, `()` int.
    """

    def __init__(
        self, predict_change: PredictChange, act_dim: int, spec: DelaySpec, batch: tuple[int, ...] = ()
    ) -> None:
        self.predict_change, self.spec, self.batch = predict_change, spec, batch
        self.reset(np.zeros(act_dim))

    def reset(self, command: np.ndarray) -> None:
        """Start an episode before which the command `(act_dim,)` was sent for long."""
        self.sent = np.broadcast_to(command, (self.spec.most + 1, *self.batch, command.shape[-1]))
        self.forget()

    def forget(self) -> None:
        """Forget what was learned: no delay until there is evidence."""
        self.delay = np.zeros(self.batch, dtype=int)
        self.score = np.zeros((self.spec.most + 1, *self.batch))
        self.seen = np.zeros(self.batch)
        self.recorded = 0

    def record(self, command: np.ndarray) -> None:
        """Note the command `(act_dim,)` that was sent in answer to the latest observation."""
        self.sent = np.concatenate([np.broadcast_to(command, self.sent.shape[1:])[None], self.sent[:-1]])
        self.recorded += 1

    def interrupt(self) -> None:
        """Note that control periods were missed, so that nobody knows which command acted in which."""
        self.recorded = 0

    @property
    def acting(self) -> np.ndarray:
        """The command `(act_dim,)` that acted over the last control period."""
        return self._sent_before(self.delay)

    def _sent_before(self, periods: np.ndarray) -> np.ndarray:
        """The command sent so many periods before the latest one, `(act_dim,)`; `periods` has the shape `batch`."""
        index = np.broadcast_to(periods[..., None], self.sent.shape[1:])
        return np.take_along_axis(self.sent, index[None], axis=0)[0]

    def update(self, obs: np.ndarray, next_obs: np.ndarray, gains: Any = 1.0, valid: Any = None) -> None:
        """Take in one transition, under the commands recorded before it.

        Args:
            obs: `(obs_dim,)`.
            next_obs: `(obs_dim,)`, one control period later.
            gains: `(act_dim,)`, how much of a command each actuator delivers.
            valid: which lanes learn.
        """
        if self.recorded <= self.spec.most:
            return
        before = np.broadcast_to(obs, (self.spec.most + 1, *obs.shape))
        predicted, std = self.predict_change(before, self.sent * gains)
        residual = (np.asarray(next_obs, dtype=np.float64) - obs) - predicted
        _, valid = usable(valid, *residual, *std)
        sound = valid[..., None]
        unexplained = np.square(np.where(sound, residual, 0.0) / np.where(sound, std, 1.0)).mean(-1)
        score = unexplained / (1.0 + unexplained.mean(0))
        self.score = np.where(valid, self.spec.forgetting * self.score + score, self.score)
        self.seen = self.seen + valid
        best = self.score.argmin(0)
        present = np.take_along_axis(self.score, self.delay[None], axis=0)[0]
        clear = (self.seen >= WARM_UP) & (self.score.min(0) < self.spec.margin * present)
        self.delay = np.where(clear, best, self.delay)

    def ahead(self, obs: np.ndarray, gains: Any = 1.0) -> np.ndarray:
        """Predict the observation `(obs_dim,)` at which the command that answers `obs` will begin to act."""
        for left in range(int(self.delay.max(initial=0)), 0, -1):
            acts = (self.delay >= left)[..., None]
            change, _ = self.predict_change(obs, self.sent[left - 1] * gains)
            obs = np.where(acts, obs + change, obs)
        return obs
