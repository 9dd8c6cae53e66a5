"""What a run asks of every algorithm, and what learners share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from offline_train.replay import Batch


class Settings(Protocol):
    """What a run asks of an algorithm's settings."""

    @property
    def name(self) -> str:
        """By which the algorithm is chosen."""

    @property
    def updates(self) -> int:
        """Gradient steps in all."""

    @property
    def steps_per_epoch(self) -> int:
        """Gradient steps of one call of `train_epoch`."""


class Algorithm(Protocol):
    """What a run asks of an algorithm.

    Attributes:
        updates: gradient steps done.
    """

    updates: int

    @property
    def policy(self) -> Learner:
        """What a finished run keeps; its `forward` is the policy that acts and is exported."""

    @property
    def finished(self) -> bool:
        """Whether the budget of updates is spent."""

    def train_epoch(self) -> dict[str, float]:
        """Do the next epoch; returns the means of its figures."""

    def act_nominal(self, obs: Tensor) -> Tensor:
        """The deterministic action `(batch, act_dim)` in [-1, 1] for raw observations `(batch, obs_dim)`.

        Observations may be on any device, and the action is on theirs, wherever the networks are.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


class Learner(nn.Module, ABC):
    """Networks that learn a policy from batches of transitions.

    Observations are standardised inside, so that the outside speaks the data's units only. Actions are in [-1, 1].

    Args:
        obs_mean: `(input_dim,)`, subtracted from every observation. `input_dim` counts context dimensions too.
        obs_std: `(input_dim,)`, divided by.
        generator: draws initial weights and everything random in an update.

    Attributes:
        actor: what acts where nothing else is said, standardised observations to actions.
        optimizer: of everything that is learned.
    """

    obs_mean: Tensor
    obs_std: Tensor
    actor: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, obs_mean: Tensor, obs_std: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("obs_mean", obs_mean.clone())
        self.register_buffer("obs_std", obs_std.clone())

    def normalise(self, obs: Tensor) -> Tensor:
        """Standardise observations `(batch, input_dim)`."""
        return (obs - self.obs_mean) / self.obs_std

    def forward(self, obs: Tensor) -> Tensor:
        """Return the deterministic action `(batch, act_dim)` for raw observations `(batch, input_dim)`."""
        return self.actor(self.normalise(obs))

    @abstractmethod
    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One gradient step.

        Args:
            batch: transitions in the data's units.
            step: gradient steps before this one.

        Returns:
            Figures of the step as scalars still on the device, so that nobody waits for them unasked.
        """

    def noise_like(self, values: Tensor) -> Tensor:
        """Standard normal noise of the shape of `values`, from the learner's own generator."""
        return torch.randn(values.shape, generator=self.generator, device=values.device)


def bellman_target(reward: Tensor, terminal: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """Y = r + gamma (1 - d) V(s'), all `(batch,)`; `terminal`, d, is 1 where bootstrapping stops."""
    return reward + discount * (1.0 - terminal) * next_value


@torch.no_grad()
def move_towards(target: nn.Module, learned: nn.Module, rate: float) -> None:
    """Move every parameter of `target` by the share `rate` of its way to that of `learned` (Polyak averaging)."""
    torch._foreach_lerp_([*target.parameters()], [*learned.parameters()], rate)


def mean_figures(figures: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of every figure over the steps that gave it.

    Args:
        figures: scalars of each step. From an iterator none outlives its step: kept, those of thousands of steps lie
            between the gradients and grow the process by gigabytes.
    """
    totals: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    for step in figures:
        counts.update(step.keys())
        for name, value in step.items():
            totals[name] = totals.get(name, 0.0) + value.double()
    return {name: float(total) / counts[name] for name, total in totals.items()}
