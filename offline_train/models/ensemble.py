"""The probabilistic ensemble of MOPO: what it predicts, and one sampled step.

Seven networks of four layers each give a Gaussian over (change of state, reward); five elites, the best on held-out
episodes, take turns in drawing the next state (Yu et al. 2020, section 5 and appendix; settings in Janner et al. 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from offline_train.models.penalties import Prediction, measure
from offline_train.networks import EnsembleLinear, in_float32

TerminationRule = Callable[[Tensor], Tensor]


class ModelStep(NamedTuple):
    """One sampled step: `(batch, obs_dim)`, `(batch,)`, `(batch,)` in {0, 1}, `(batch,)`."""

    next_obs: Tensor
    reward: Tensor
    terminal: Tensor
    penalty: Tensor


class DynamicsEnsemble(nn.Module):
    """Members' Gaussians over the normalised change of state and reward, with normalisers inside.

    Args:
        obs_dim: size of an observation.
        act_dim: size of an action.
        generator: draws the initial weights.
        members: networks trained.
        elites: networks that rollouts draw from.
        hidden: width of each hidden layer.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    elite_index: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        generator: torch.Generator,
        *,
        members: int = 7,
        elites: int = 5,
        hidden: Sequence[int] = (200, 200, 200, 200),
    ) -> None:
        super().__init__()
        self.obs_dim, self.act_dim, self.members = obs_dim, act_dim, members
        target_dim = obs_dim + 1
        sizes = [obs_dim + act_dim, *hidden]
        self.layers = nn.ModuleList(EnsembleLinear(members, a, b, generator) for a, b in itertools.pairwise(sizes))
        self.mean_head = EnsembleLinear(members, hidden[-1], target_dim, generator)
        self.log_variance_head = EnsembleLinear(members, hidden[-1], target_dim, generator)
        self.max_log_variance = nn.Parameter(torch.full((target_dim,), 0.5))
        self.min_log_variance = nn.Parameter(torch.full((target_dim,), -10.0))
        self.register_buffer("input_mean", torch.zeros(obs_dim + act_dim))
        self.register_buffer("input_std", torch.ones(obs_dim + act_dim))
        self.register_buffer("target_mean", torch.zeros(target_dim))
        self.register_buffer("target_std", torch.ones(target_dim))
        self.register_buffer("elite_index", torch.arange(elites))

    def forward(self, inputs: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalised inputs `(members, batch, in_dim)` to normalised mean and log variance of the targets.

        `chosen` restricts the evaluation to these members; the first dimension is then theirs.
        """
        hidden = functional.silu(in_float32(self.layers[0], inputs, chosen))
        for layer in self.layers[1:]:
            hidden = functional.silu(layer(hidden, chosen))
        mean = in_float32(self.mean_head, hidden, chosen)
        log_variance = in_float32(self.log_variance_head, hidden, chosen)
        # Soft bounds keep the variance from collapsing or blowing up off the data (Chua et al. 2018, appendix A.1).
        log_variance = self.max_log_variance - functional.softplus(self.max_log_variance - log_variance)
        log_variance = self.min_log_variance + functional.softplus(log_variance - self.min_log_variance)
        return mean, log_variance

    def normalise(self, obs: Tensor, action: Tensor) -> Tensor:
        """Standardised network input `(batch, in_dim)`, clipped at ten standard deviations."""
        return ((torch.cat([obs, action], dim=-1) - self.input_mean) / self.input_std).clamp(-10.0, 10.0)

    def predict(self, obs: Tensor, action: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every member's mean and standard deviation of (next state - state, reward), in the data's units.

        Args:
            obs: `(batch, obs_dim)`.
            action: `(batch, act_dim)`.
            chosen: the members to ask; None asks all of them.

        Returns:
            Two tensors `(members, batch, obs_dim + 1)`.
        """
        members = self.members if chosen is None else len(chosen)
        mean, log_variance = self(self.normalise(obs, action).expand(members, -1, -1), chosen)
        return mean * self.target_std + self.target_mean, (0.5 * log_variance).exp() * self.target_std

    def draw(self, obs: Tensor, action: Tensor, generator: torch.Generator, *, every_member: bool = True) -> Prediction:
        """Draw (next state - state, reward) of every row from one elite, chosen anew for each row.

        Args:
            obs: `(batch, obs_dim)`.
            action: `(batch, act_dim)`.
            generator: draws the elite and the noise.
            every_member: whether the prediction holds all members, or the elites alone, which is faster.
        """
        elites, device = self.elite_index, obs.device
        mean, std = self.predict(obs, action, None if every_member else elites)
        drawable = elites if every_member else torch.arange(len(elites), device=device)
        member = drawable[torch.randint(len(elites), (len(obs),), generator=generator, device=device)]
        row = torch.arange(len(obs), device=device)
        noise = torch.randn(mean.shape[1:], generator=generator, device=device)
        return Prediction(mean, std, member, mean[member, row] + std[member, row] * noise)

    def step(
        self,
        obs: Tensor,
        action: Tensor,
        generator: torch.Generator,
        *,
        penalty: str | None,
        terminated: TerminationRule,
    ) -> ModelStep:
        """Draw the next state and reward of every row from one elite, chosen anew for each row.

        Args:
            obs: `(batch, obs_dim)`.
            action: `(batch, act_dim)`.
            generator: draws the elite and the noise.
            penalty: a name in `PENALTIES`; None takes none, and asks the elites alone.
            terminated: the environment's rule on next observations.
        """
        prediction = self.draw(obs, action, generator, every_member=penalty is not None)
        next_obs, reward = obs + prediction.drawn[:, :-1], prediction.drawn[:, -1]
        return ModelStep(next_obs, reward, terminated(next_obs).float(), measure(penalty, prediction, generator))

    def mean_change(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The elites' mean change of state and the standard deviation of their mixture, each `(batch, obs_dim)`.

        Only the elites are evaluated: this is what runs on the robot.
        """
        mean, log_variance = self._elites(obs, action)
        variance = log_variance.exp().mean(0) + mean.var(0, unbiased=False)
        change = mean.mean(0) * self.target_std + self.target_mean
        return change[:, :-1], (variance.sqrt() * self.target_std)[:, :-1]

    def mean_step(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The elites' mean change of state `(batch, obs_dim)` and reward `(batch,)`, which a plan is made with."""
        mean = self._elites(obs, action)[0].mean(0) * self.target_std + self.target_mean
        return mean[:, :-1], mean[:, -1]

    def _elites(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The elites' normalised means and log variances, each `(elites, batch, obs_dim + 1)`."""
        elites = self.elite_index
        return self(self.normalise(obs, action).expand(len(elites), -1, -1), elites)
