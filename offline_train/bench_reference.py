"""What `surefoot bench` compares with: the same work as an ordinary implementation does it.

Numpy buffers with one array a field, separate critics, one plain Adam each, `.item()` after every step, gradients that
nobody asked for, rollouts of all rows at once through numpy, one environment with one policy call a step, and a refit
of everything remembered at every step.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import gpytorch
import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from sim.environments import quiet_mujoco

Fields = dict[str, np.ndarray]
Policy = Callable[[np.ndarray], np.ndarray]


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """A multilayer perceptron with rectifiers between its layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sample(buffer: Fields, rows: int, generator: np.random.Generator) -> Fields:
    """Draw rows of a buffer, field by field."""
    index = generator.integers(0, len(buffer["obs"]), rows)
    return {name: values[index] for name, values in buffer.items()}


class PlainSac:
    """Soft actor-critic with an optimiser and a step for each of its networks."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: Sequence[int]) -> None:
        self.actor = mlp([obs_dim, *hidden, 2 * act_dim])
        self.critics = [mlp([obs_dim + act_dim, *hidden, 1]) for _ in range(2)]
        self.targets = [copy.deepcopy(critic) for critic in self.critics]
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_adams = [torch.optim.Adam(critic.parameters(), lr=3e-4) for critic in self.critics]
        self.alpha_adam = torch.optim.Adam([self.log_alpha], lr=3e-4)

    def draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Draw an action and its log density."""
        mean, log_std = self.actor(obs).chunk(2, dim=-1)
        normal = Normal(mean, log_std.clamp(-20, 2).exp())
        pre_tanh = normal.rsample()
        action = torch.tanh(pre_tanh)
        log_prob = normal.log_prob(pre_tanh) - torch.log(1 - action.pow(2) + 1e-6)
        return action, log_prob.sum(-1, keepdim=True)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Draw actions for a numpy batch."""
        with torch.no_grad():
            return self.draw(torch.from_numpy(obs).float())[0].numpy()

    def update(self, batch: Fields) -> dict[str, float]:
        """One step of critics, actor, temperature and targets."""
        obs, action, reward, next_obs, terminal = (
            torch.from_numpy(batch[name]) for name in ("obs", "action", "reward", "next_obs", "terminal")
        )
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            next_action, next_log_prob = self.draw(next_obs)
            both = torch.cat([next_obs, next_action], -1)
            next_value = torch.min(self.targets[0](both), self.targets[1](both)) - alpha * next_log_prob
            target = reward[:, None] + 0.99 * (1 - terminal[:, None]) * next_value
        losses = []
        for critic, adam in zip(self.critics, self.critic_adams, strict=True):
            loss = (critic(torch.cat([obs, action], -1)) - target).pow(2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        proposal, log_prob = self.draw(obs)
        both = torch.cat([obs, proposal], -1)
        actor_loss = (alpha * log_prob - torch.min(self.critics[0](both), self.critics[1](both))).mean()
        self.actor_adam.zero_grad()
        actor_loss.backward()
        self.actor_adam.step()
        alpha_loss = -(self.log_alpha * (log_prob.detach() - 3.0)).mean()
        self.alpha_adam.zero_grad()
        alpha_loss.backward()
        self.alpha_adam.step()
        for critic, slow in zip(self.critics, self.targets, strict=True):
            for now, old in zip(critic.parameters(), slow.parameters(), strict=True):
                old.data.copy_(0.995 * old.data + 0.005 * now.data)
        return {"critic": sum(losses), "actor": actor_loss.item(), "alpha": alpha}


class PlainTd3Bc:
    """TD3+BC with an optimiser for each of its networks, and both critics judged where one is asked."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: Sequence[int]) -> None:
        self.actor = nn.Sequential(mlp([obs_dim, *hidden, act_dim]), nn.Tanh())
        self.critics = [mlp([obs_dim + act_dim, *hidden, 1]) for _ in range(2)]
        self.slow_actor, self.slow_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_adams = [torch.optim.Adam(critic.parameters(), lr=3e-4) for critic in self.critics]
        self.steps = 0

    def update(self, batch: Fields) -> dict[str, float]:
        """One step of the critics, every second time also of actor and targets."""
        obs, action, reward, next_obs, terminal = (
            torch.from_numpy(batch[name]) for name in ("obs", "action", "reward", "next_obs", "terminal")
        )
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            both = torch.cat([next_obs, (self.slow_actor(next_obs) + noise).clamp(-1, 1)], -1)
            next_value = torch.min(self.slow_critics[0](both), self.slow_critics[1](both))
            target = reward[:, None] + 0.99 * (1 - terminal[:, None]) * next_value
        figures = {"critic": 0.0}
        for critic, adam in zip(self.critics, self.critic_adams, strict=True):
            loss = (critic(torch.cat([obs, action], -1)) - target).pow(2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            figures["critic"] += loss.item()
        self.steps += 1
        if self.steps % 2 == 0:
            proposal = self.actor(obs)
            value = self.critics[0](torch.cat([obs, proposal], -1))
            actor_loss = (proposal - action).pow(2).mean() - 2.5 / value.abs().mean().detach() * value.mean()
            self.actor_adam.zero_grad()
            actor_loss.backward()
            self.actor_adam.step()
            figures["actor"] = actor_loss.item()
            pairs = zip([self.actor, *self.critics], [self.slow_actor, *self.slow_critics], strict=True)
            for network, slow in pairs:
                for now, old in zip(network.parameters(), slow.parameters(), strict=True):
                    old.data.copy_(0.995 * old.data + 0.005 * now.data)
        return figures


class PlainEdac(PlainSac):
    """EDAC with its critics in one tensor a layer, and autograd differentiating their gradients a second time."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: Sequence[int], members: int) -> None:
        super().__init__(obs_dim, act_dim, hidden)
        sizes = [obs_dim + act_dim, *hidden, 1]
        shapes = list(itertools.pairwise(sizes))
        self.weights = [(0.05 * torch.randn(members, *shape)).requires_grad_() for shape in shapes]
        self.biases = [torch.full((members, 1, shape[1]), 0.1, requires_grad=True) for shape in shapes]
        self.slow = [value.detach().clone() for value in (*self.weights, *self.biases)]
        self.critic_adam = torch.optim.Adam([*self.weights, *self.biases], lr=3e-4)

    def values(self, obs: Tensor, action: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Every critic's value, `(members, batch)`."""
        layers = len(self.weights)
        hidden = torch.cat([obs, action], -1)
        if hidden.dim() == 2:
            hidden = hidden.repeat(len(parameters[0]), 1, 1)
        for layer in range(layers):
            hidden = hidden @ parameters[layer] + parameters[layers + layer]
            hidden = torch.relu(hidden) if layer < layers - 1 else hidden
        return hidden.squeeze(-1)

    def update(self, batch: Fields) -> dict[str, float]:
        """One step of temperature, actor, critics and targets."""
        obs, action, reward, next_obs, terminal = (
            torch.from_numpy(batch[name]) for name in ("obs", "action", "reward", "next_obs", "terminal")
        )
        learned, members = [*self.weights, *self.biases], len(self.weights[0])
        proposal, log_prob = self.draw(obs)
        alpha_loss = -(self.log_alpha * (log_prob.detach() - action.shape[-1])).mean()
        self.alpha_adam.zero_grad()
        alpha_loss.backward()
        self.alpha_adam.step()
        alpha = self.log_alpha.exp().item()
        actor_loss = (alpha * log_prob[:, 0] - self.values(obs, proposal, learned).min(0).values).mean()
        self.actor_adam.zero_grad()
        actor_loss.backward()
        self.actor_adam.step()
        with torch.no_grad():
            next_action, next_log_prob = self.draw(next_obs)
            next_value = self.values(next_obs, next_action, self.slow).min(0).values - alpha * next_log_prob[:, 0]
            target = reward + 0.99 * (1 - terminal) * next_value
        loss = (self.values(obs, action, learned) - target).pow(2).mean(1).sum()
        tiled = action.repeat(members, 1, 1).requires_grad_(True)
        total = self.values(obs.repeat(members, 1, 1), tiled, learned).sum()
        (gradient,) = torch.autograd.grad(total, tiled, create_graph=True)
        unit = (gradient / (gradient.norm(dim=2, keepdim=True) + 1e-10)).transpose(0, 1)
        pairs = (unit @ unit.transpose(1, 2)) * (1 - torch.eye(members))
        self.critic_adam.zero_grad()
        (loss + pairs.sum((1, 2)).mean() / (members - 1)).backward()
        self.critic_adam.step()
        for now, old in zip(learned, self.slow, strict=True):
            old.copy_(0.995 * old + 0.005 * now.data)
        return {"critic": loss.item(), "actor": actor_loss.item(), "alpha": alpha}


class PlainResidual(nn.Module):
    """One residual layer of `PlainDiffusion`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """The layer's output beside its input."""
        return hidden + self.linear(torch.relu(hidden))


class PlainDiffusion(nn.Module):
    """An elucidated diffusion model, with one noise level a row also where all are alike."""

    def __init__(self, dim: int, width: int, depth: int = 6, embedding: int = 128) -> None:
        super().__init__()
        self.frequencies = torch.randn(8)
        self.level = nn.Sequential(nn.Linear(17, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.first = nn.Linear(dim, embedding)
        layers = [PlainResidual(width) for _ in range(depth)]
        self.rest = nn.Sequential(nn.Linear(embedding, width), *layers, nn.ReLU(), nn.Linear(width, dim))
        self.slow = [p.detach().clone() for p in self.parameters()]
        self.adam = torch.optim.AdamW(self.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0)
        self.steps = 0

    def denoise(self, rows: Tensor, sigma: Tensor) -> Tensor:
        """D for rows `(batch, dim)` and their noise levels `(batch,)`."""
        sigma = sigma[:, None]
        level = sigma.log() / 4
        angles = 2 * torch.pi * level * self.frequencies
        told = self.level(torch.cat([level, angles.sin(), angles.cos()], -1))
        found = self.rest(self.first(rows / (sigma**2 + 1).sqrt()) + told)
        return rows / (sigma**2 + 1) + sigma / (sigma**2 + 1).sqrt() * found

    def update(self, rows: np.ndarray) -> float:
        """One gradient step, every tenth time of the average too."""
        batch = torch.from_numpy(rows)
        sigma = (1.2 * torch.randn(len(batch)) - 1.2).exp()
        noisy = batch + sigma[:, None] * torch.randn_like(batch)
        error = (self.denoise(noisy, sigma) - batch).pow(2).mean(-1)
        loss = (error * (sigma**2 + 1) / sigma**2).mean()
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.adam.step()
        self.steps += 1
        if self.steps % 10 == 0:
            for now, old in zip(self.parameters(), self.slow, strict=True):
                old.copy_(0.995 * old + 0.005 * now.data)
        return loss.item()

    def sample(self, rows: int, levels: Sequence[float]) -> Tensor:
        """Stochastic Heun steps from level to level."""
        with torch.no_grad():
            x = levels[0] * torch.randn(rows, self.first.in_features)
            for now, after in itertools.pairwise(levels):
                raised = now * (1 + (2**0.5 - 1 if 0.05 <= now <= 50 else 0))
                x = x + (raised**2 - now**2) ** 0.5 * 1.003 * torch.randn_like(x)
                slope = (x - self.denoise(x, torch.full((rows,), raised))) / raised
                ahead = x + (after - raised) * slope
                if after > 0:
                    second = (ahead - self.denoise(ahead, torch.full((rows,), after))) / after
                    ahead = x + (after - raised) * (slope + second) / 2
                x = ahead
        return x


def mixed_batch(real: Fields, model: Fields, rows: int, generator: np.random.Generator) -> Fields:
    """A batch with one row in twenty from the real transitions."""
    n_real = rows // 20
    parts = sample(real, n_real, generator), sample(model, rows - n_real, generator)
    return {name: np.concatenate([part[name] for part in parts]) for name in real}


def scaled_batch(batch: Fields, generator: np.random.Generator) -> Fields:
    """The batch with its changes of state scaled by a fresh z, which is appended to both observations."""
    obs, next_obs = batch["obs"], batch["next_obs"]
    z = generator.uniform(0.5, 1.5, obs.shape).astype(np.float32)
    scaled = obs + z * (next_obs - obs)
    return batch | {"obs": np.concatenate([obs, z], -1), "next_obs": np.concatenate([scaled, z], -1)}


class PlainEnsemble(nn.Module):
    """The dynamics ensemble with its normalisers and bootstraps in numpy."""

    def __init__(self, obs_dim: int, act_dim: int, members: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [obs_dim + act_dim, *hidden, 2 * (obs_dim + 1)]
        self.weights = nn.ParameterList(
            0.05 * torch.randn(members, inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(members, 1, outputs) for outputs in sizes[1:])
        self.max_log_variance = nn.Parameter(torch.full((obs_dim + 1,), 0.5))
        self.min_log_variance = nn.Parameter(torch.full((obs_dim + 1,), -10.0))
        self.mean, self.std = np.zeros(obs_dim + act_dim, np.float32), np.ones(obs_dim + act_dim, np.float32)
        self.adam = torch.optim.Adam(self.parameters(), lr=1e-3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`(members, batch, in_dim)` to mean and log variance."""
        hidden = inputs
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if hidden is not inputs:
                hidden = hidden * torch.sigmoid(hidden)
            hidden = torch.einsum("bij,bjk->bik", hidden, weight) + bias
        mean, log_variance = hidden.chunk(2, dim=-1)
        softplus = nn.functional.softplus
        log_variance = self.max_log_variance - softplus(self.max_log_variance - log_variance)
        return mean, self.min_log_variance + softplus(log_variance - self.min_log_variance)

    def update(self, inputs: np.ndarray, targets: np.ndarray, index: np.ndarray) -> float:
        """One step on the rows that `index (members, batch)` names."""
        mean, log_variance = self(torch.from_numpy(inputs[index]))
        target = torch.from_numpy(targets[index])
        loss = ((mean - target).pow(2) * torch.exp(-log_variance)).mean((1, 2)).sum() + log_variance.mean((1, 2)).sum()
        loss = loss + 0.01 * (self.max_log_variance.sum() - self.min_log_variance.sum())
        for weight, decay in zip(self.weights, (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), strict=False):
            loss = loss + 0.5 * decay * weight.pow(2).sum()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.item()

    def step(self, obs: np.ndarray, action: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Next observation, penalised reward and terminal of one sampled step."""
        inputs = (np.concatenate([obs, action], -1) - self.mean) / self.std
        with torch.no_grad():
            means, log_variances = self(torch.from_numpy(inputs).expand(self.weights[0].shape[0], -1, -1))
        mean, std = means.numpy(), np.sqrt(np.exp(log_variances.numpy()))
        drawn = mean + std * generator.standard_normal(mean.shape).astype(np.float32)
        chosen = drawn[generator.integers(0, 5, len(obs)), np.arange(len(obs))]
        penalty = np.linalg.norm(std, axis=-1).max(0)
        return obs + chosen[:, :-1], chosen[:, -1] - penalty, np.zeros(len(obs), bool)


def plain_rollout(
    model: PlainEnsemble, start: np.ndarray, policy: Policy, horizon: int, generator: np.random.Generator
) -> Fields:
    """Roll all rows out at once and collect the transitions."""
    obs, steps = start, []
    for _ in range(horizon):
        action = policy(obs)
        next_obs, reward, terminal = model.step(obs, action, generator)
        steps.append((obs, action, reward, next_obs, terminal))
        obs = next_obs[~terminal]
    names = ("obs", "action", "reward", "next_obs", "terminal")
    return {name: np.concatenate([step[i] for step in steps]) for i, name in enumerate(names)}


def plain_episodes(gym_id: str, policy: Policy, steps: int) -> None:
    """One gymnasium environment, one policy call a step.

    Args:
        gym_id: the environment.
        policy: `(obs_dim,) -> (act_dim,)` in command units.
        steps: control steps.
    """
    with quiet_mujoco():
        environment = gymnasium.make(gym_id)
    obs, _ = environment.reset(seed=0)
    for _ in range(steps):
        obs, _, terminated, truncated, _ = environment.step(policy(obs))
        if terminated or truncated:
            obs, _ = environment.reset()
    environment.close()


class PlainContext:
    """A context that is refitted to the last steps at every step.

    Args:
        predict_change: the dynamics of the original environment.
        kind: which estimator it stands beside, by name.
        window: steps remembered.
    """

    def __init__(self, predict_change: Callable[..., tuple[np.ndarray, np.ndarray]], kind: str, window: int) -> None:
        self.predict_change, self.kind, self.window = predict_change, kind, window
        self.inputs: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.observed: list[np.ndarray] = []

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
        """Take in one transition and return the scaling."""
        change, _ = self.predict_change(obs, action)
        for memory, row in (
            (self.inputs, np.concatenate([obs, action, [1.0]])),
            (self.predicted, change),
            (self.observed, next_obs - obs),
        ):
            memory.append(row)
            del memory[: -self.window]
        observed, predicted = np.array(self.observed), np.array(self.predicted)
        if self.kind == "linear_forward":
            weights = np.linalg.lstsq(np.array(self.inputs), observed, rcond=None)[0]
            return self.inputs[-1] @ weights / change
        if self.kind == "affine":
            designs = [np.column_stack([x, np.ones_like(x)]) for x in predicted.T]
            return np.array([np.linalg.lstsq(a, y, rcond=None)[0][0] for a, y in zip(designs, observed.T, strict=True)])
        axis = None if self.kind == "shared_scale" else 0
        return np.asarray((predicted * observed).sum(axis) / (predicted * predicted).sum(axis))


class GpytorchPrediction:
    """A multitask Gaussian process as gpytorch predicts with it, its caches warm and `fast_pred_var` on.

    Args:
        model: with its hyper-parameters and training rows.
    """

    def __init__(self, model: gpytorch.models.ExactGP) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def predict(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation with noise, `(batch, act_dim)` each."""
        with gpytorch.settings.fast_pred_var():
            found = self.model.likelihood(self.model(obs))
            return found.mean, found.variance.sqrt()
