"""A plan over a few steps around the policy: commands a little to its side, judged in the world model by its critics.

Around the policy's action a0 lie candidates a_i = a0 + spread e_i, one on either side in each direction of a fixed
orthogonal frame. Each is followed for `horizon` steps in the world model as the context changes it, the policy acting
after the first step, and is worth

    G_i = sum_{k < H} gamma^k r_k + gamma^H min_j Q_j(s_H, pi(s_H)),

and the command is the mean of the candidates weighted by softmax(sharpness (G_i - mean G) / std G). That is model
predictive path integral control (Williams et al. 2017, "Information theoretic MPC", equation 34) with one update from
the policy as the proposal and the critics as the terminal value (Argenson and Dulac-Arnold 2021, MBOP; Sikchi et al.
2021, LOOP). The frame is a constant, so that the same observation has the same command every time, and all of it is
one graph that a bundle carries as its policy: `surefoot export run=RUN plan.horizon=3`. What it gives, and why the
candidates are not drawn at random: results/halfcheetah-practised/README.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deploy.spec import PlanSpec
from offline_train.algorithms.sac import Sac
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule
from offline_train.models.rollout import UNCHANGED, Change

# Below this spread of the imagined returns the candidates are as good as one another, and rounding must not choose.
LEAST_STD = 1e-2


def directions(act_dim: int) -> Tensor:
    """Where candidates lie: `(1 + 2 act_dim, act_dim)`, no way at all and both ways along each axis of a fixed frame.

    Each way is as long as a vector of ones. The frame is no actuator's own, so that every candidate moves them all.
    """
    drawn = torch.randn(act_dim, act_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frame = math.sqrt(act_dim) * torch.linalg.qr(drawn)[0].float()
    return torch.cat([torch.zeros(1, act_dim), frame, -frame])


def weights(returns: Tensor, sharpness: float) -> Tensor:
    """Weigh candidates by their imagined returns: `(batch, candidates)`, each row sums to 1."""
    centred = returns - returns.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt()
    return torch.softmax(sharpness * centred / std.clamp(min=LEAST_STD), 1)


class Planner(nn.Module):
    """The policy with a plan around it.

    Args:
        sac: the policy and its critics.
        model: the world model.
        config: settings.
        terminated: the environment's rule on next observations; an imagined robot that falls earns nothing more.
        change: what a context does to the world model.
    """

    ways: Tensor

    def __init__(
        self,
        sac: Sac,
        model: DynamicsEnsemble,
        config: PlanSpec,
        terminated: TerminationRule,
        change: Change = UNCHANGED,
    ) -> None:
        super().__init__()
        self.sac, self.model, self.config, self.terminated, self.change = sac, model, config, terminated, change
        self.register_buffer("ways", config.spread * directions(model.act_dim))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the planned action `(batch, act_dim)` in [-1, 1] for what the policy reads `(batch, input_dim)`."""
        count = len(self.ways)
        proposed = self.sac(inputs)
        tried = (proposed[:, None] + self.ways).clamp(-1.0, 1.0)
        rows = inputs[:, None].expand(-1, count, -1).flatten(0, 1)
        returns = self.imagined_return(rows, tried.flatten(0, 1)).unflatten(0, (-1, count))
        return (weights(returns, self.config.sharpness)[..., None] * tried).sum(1)

    def imagined_return(self, inputs: Tensor, action: Tensor) -> Tensor:
        """What an action and then the policy earn, `(batch,)`, for inputs `(batch, input_dim)` and actions."""
        obs, context = inputs[:, : self.model.obs_dim], inputs[:, self.model.obs_dim :]
        earned, weight = torch.zeros_like(obs[:, 0]), torch.ones_like(obs[:, 0])
        for _ in range(self.config.horizon):
            sent = action if self.change.command is None else self.change.command(action, context)
            change, reward = self.model.mean_step(obs, sent)
            following = obs + change
            if self.change.motion is not None:
                following = self.change.motion(obs, following, context)
            earned = earned + weight * reward
            weight = weight * self.sac.config.discount * (~self.terminated(following)).float()
            obs = following
            inputs = torch.cat([obs, context], -1)
            action = self.sac(inputs)
        return earned + weight * self.sac.critics(self.sac.normalise(inputs), action).amin(0)
