"""RMA in the world model: a module tells the actuators' gains from history (Kumar et al. 2021, arXiv 2107.04034).

Phase 1 learns a policy that is told the gains g of its motors, which is AugWM in action space
(`offline_train/algorithms/augwm_actuators.py`). Phase 2 leaves that policy as it is and learns by supervised learning
to tell the gains from the last k transitions,

    minimise  E | phi(h) - g |^2,    h = (s, a, s' - s) of the last k steps, zeros before the first.

Histories have two sources. As in the paper, some are on-policy: rollouts, here of the world model, in which the policy
is told what the module says. The others are stretches of the log: where u was sent, a motor of gain g would have done
the same under the command u / g, and a motor that was sent nothing may as well be a dead one that was sent anything.
Those have the robot's own dynamics, and do not drift.

The paper's policy reads an encoding of what it is told, and its module tells that; gains are few enough to be told as
they are. On the robot `deploy/context/history.py` runs the module.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from adapters.errors import UserError
from adapters.files import read_json
from deploy.context import HistorySettings, estimator_settings
from offline_train.algorithms.augwm_actuators import ActuatorAugWm, ActuatorAugWmConfig, delivered, draw_gains
from offline_train.algorithms.base import mean_figures
from offline_train.checkpoint import load_checkpoint
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule
from offline_train.networks import in_float32
from offline_train.replay import Batch

# Share of the histories from the log in which the gains change on the way.
CHANGING = 0.35
# Kernel and strides of the convolutions over time: 50 transitions become 13, 7 and 7.
KERNEL, STRIDES = 5, (4, 2, 1)


class RmaConfig(ActuatorAugWmConfig):
    """Settings beyond those of AugWM in action space, which are phase 1's."""

    name: Literal["rma"] = "rma"  # type: ignore[assignment]
    updates: int = Field(default=45_000, ge=1, description="gradient steps in all, phase 2's last")
    adaptation_updates: int = Field(default=5_000, ge=1, description="gradient steps of phase 2")
    told_run: Path | None = Field(default=None, description="finished run whose policy is taken in place of phase 1")
    embedding: list[int] = Field(default=[128, 32], description="width of each layer that reads one transition")
    channels: int = Field(default=32, ge=1, description="channels of the convolutions over time")
    adaptation_rate: float = Field(default=1e-3, gt=0, description="Adam's step size at first; it falls to 0")
    log_share: float = Field(default=0.5, ge=0, le=1, description="share of histories from the log, not from rollouts")
    adaptation_starts: int = Field(default=600, ge=1, description="model rollouts for every epoch of phase 2")
    adaptation_horizon: int = Field(default=100, ge=1, description="steps of each of them")
    change_chance: float = Field(default=0.01, ge=0, le=1, description="chance a step that its gains are drawn anew")
    told: Literal[True] = True
    estimator: Literal["history"] = "history"

    @model_validator(mode="after")
    def _leaves_a_policy(self) -> RmaConfig:
        if self.adaptation_updates >= self.updates:
            raise ValueError("adaptation_updates are part of the updates and must be fewer")
        return self

    @property
    def window(self) -> int:
        """Transitions that the module reads, k."""
        settings = estimator_settings(self.estimator, self.estimator_settings)
        assert isinstance(settings, HistorySettings)
        return settings.window


class Histories(NamedTuple):
    """What the robot did lately, `(batch, window, 1 + 2 obs_dim + act_dim)`, and its gains now, `(batch, act_dim)`."""

    rows: Tensor
    gains: Tensor


class Rollouts(NamedTuple):
    """Rollouts of the world model.

    Attributes:
        rows: `(rollouts, window + horizon, 1 + 2 obs_dim + act_dim)`, the first `window` of them zeros.
        gains: `(rollouts, horizon, act_dim)`.
        ends: rollout and step of every transition before the end of its rollout, `(transitions, 2)`.
    """

    rows: Tensor
    gains: Tensor
    ends: Tensor


class Adaptation(nn.Module):
    """The adaptation module: each transition is embedded by itself, then convolutions over time lead to the gains.

    Args:
        mean: subtracted from [obs, action, change], `(2 obs_dim + act_dim,)`.
        std: divided by.
        act_dim: how many gains.
        config: settings.
        generator: draws the initial weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, act_dim: int, config: RmaConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.window = config.window
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        widths = [len(mean), *config.embedding]
        self.embed = nn.Sequential()
        for a, b in itertools.pairwise(widths):
            self.embed.extend([nn.Linear(a, b), nn.ReLU()])
        self.convolve = nn.Sequential()
        width, length = widths[-1], self.window
        for stride in STRIDES:
            self.convolve.extend([nn.Conv1d(width, config.channels, KERNEL, stride, KERNEL // 2), nn.ReLU()])
            width, length = config.channels, -(-length // stride)
        self.head = nn.Linear(width * length, act_dim)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d)):
                bound = 1.0 / math.sqrt(layer.weight[0].numel())
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, history: Tensor) -> Tensor:
        """Gains `(batch, act_dim)` for histories `(batch, window, 1 + 2 obs_dim + act_dim)`, actions in [-1, 1]."""
        present, transition = history[..., :1], history[..., 1:]
        scaled = ((transition - self.mean) / self.std).clamp(-10.0, 10.0)
        embedded = in_float32(self.embed, scaled) * present
        return 1.0 + in_float32(self.head, self.convolve(embedded.transpose(1, 2)).flatten(1))


def transitions(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Rows of a history, `[1, obs, action, next_obs - obs]`, `(..., 1 + 2 obs_dim + act_dim)`."""
    return torch.cat([torch.ones_like(obs[..., :1]), obs, action, next_obs - obs], -1)


def adaptation_loss(estimate: Tensor, gains: Tensor) -> Tensor:
    """Mean squared error of gains `(batch, act_dim)`, the paper's loss of phase 2."""
    return functional.mse_loss(estimate, gains)


def commands_behind(sent: Tensor, gains: Tensor, asked: Tensor, spread: Tensor) -> Tensor:
    """What motors with these gains would have been commanded to deliver what was sent.

    Args:
        sent: `(..., act_dim)` in [-1, 1].
        gains: at least |sent| each, or 0 where nothing was sent.
        asked: what dead motors are commanded.
        spread: in [0, 1]; a strong motor that gives all it can got any command that is enough, and this says which.
    """
    enough = 1.0 / gains.clamp(min=1.0)
    most = sent.sign() * (enough + spread * (1.0 - enough))
    command = torch.where(sent.abs() < 1.0, sent / gains.clamp(min=1e-6), most)
    return torch.where(gains > 0, command.clamp(-1.0, 1.0), asked)


def age_in_episode(obs: Tensor, next_obs: Tensor) -> Tensor:
    """How many rows before each one are of the same episode, `(rows,)`; one begins where a row does not go on the last.

    Args:
        obs: `(rows, obs_dim)`, in the order in which they were made.
        next_obs: `(rows, obs_dim)`.
    """
    row = torch.arange(len(obs), device=obs.device)
    begins = torch.ones(len(obs), dtype=torch.bool, device=obs.device)
    begins[1:] = (next_obs[:-1] != obs[1:]).any(-1)
    return row - torch.where(begins, row, 0).cummax(0).values


class Rma(ActuatorAugWm):
    """AugWM in action space, then the module; takes what `Mopo` takes."""

    config: RmaConfig

    def __init__(
        self, config: RmaConfig, real: Tensor, model: DynamicsEnsemble, terminated: TerminationRule, seed: int
    ) -> None:
        super().__init__(config, real, model, terminated, seed)
        self.log = Batch.unpack(real, self.obs_dim, self.act_dim)
        self.age = age_in_episode(self.log.obs, self.log.next_obs)
        rows = transitions(self.log.obs, self.log.action, self.log.next_obs)[:, 1:]
        mean, std = rows.mean(0), rows.std(0, unbiased=False).clamp(min=1e-6)
        with torch.device(real.device):
            self.adaptation = Adaptation(mean, std, self.act_dim, self.config, self.generator)
        rate = self.config.adaptation_rate
        self.adaptation_optimizer = torch.optim.Adam(self.adaptation.parameters(), lr=rate, fused=True)

    @property
    def policy_updates(self) -> int:
        """Gradient steps of phase 1."""
        return self.config.updates - self.config.adaptation_updates

    def train_epoch(self) -> dict[str, float]:
        """One epoch of the phase that is on; returns the means of its figures."""
        if self.updates == 0 and self.config.told_run is not None:
            self._take_policy(self.config.told_run)
        if self.updates < self.policy_updates:
            return super().train_epoch()
        rollouts = self._roll_out()
        budget = min(self.config.steps_per_epoch, self.config.updates - self.updates)
        steps = range(self.updates, self.updates + budget)
        figures = mean_figures({"adaptation_loss": self._adapt(rollouts, step)} for step in steps)
        self.updates += budget
        return figures

    def _take_policy(self, folder: Path) -> None:
        """Take the policy of a finished run in place of phase 1.

        Raises:
            UserError: there is none, it is not told gains, or its networks have other sizes.
        """
        name = read_json(folder / "run.json")["config"]["algorithm"]["name"]
        if name not in ("augwm-actuators", "rma"):
            raise UserError(f"told_run={folder} is a run of {name}; give one of augwm-actuators.")
        try:
            self.sac.load_state_dict(load_checkpoint(folder / "policy.safetensors"))
        except RuntimeError as error:
            raise UserError(
                f"told_run={folder} has networks of other sizes; give one of the same robot whose policy is told, and "
                "algorithm.sac.hidden as it was there."
            ) from error
        self.updates = self.policy_updates

    def _adapt(self, rollouts: Rollouts, update: int) -> Tensor:
        """One gradient step of the module."""
        config = self.config
        from_log = round(config.batch_size * config.log_share)
        parts = (self._log_histories(from_log), self._rolled_histories(rollouts, config.batch_size - from_log))
        rows, gains = (torch.cat(both) for both in zip(*parts, strict=True))
        loss = adaptation_loss(self.adaptation(rows), gains)
        done = (update - self.policy_updates) / config.adaptation_updates
        for group in self.adaptation_optimizer.param_groups:
            group["lr"] = 0.5 * (1.0 + math.cos(math.pi * done)) * config.adaptation_rate
        self.adaptation_optimizer.zero_grad()
        loss.backward()
        self.adaptation_optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def _log_histories(self, count: int) -> Histories:
        """Stretches of the log as those of robots with other gains; in some the gains change on the way."""
        window, device = self.config.window, self.log.obs.device
        last = self._integers(len(self.log.obs), (count, 1))
        # Half are cut short, as at the start of an episode.
        length = torch.where(self._uniform(count, 1) < 0.5, 1 + self._integers(window, (count, 1)), window)
        length = torch.minimum(length, self.age[last] + 1)
        back = torch.arange(window - 1, -1, -1, device=device)
        present = (back < length)[..., None]
        index = (last - back).clamp(min=0)
        obs, next_obs, sent = self.log.obs[index], self.log.next_obs[index], self.log.action[index] * present
        change = torch.where(self._uniform(count, 1) < CHANGING, self._integers(window, (count, 1)), window)
        gains = self._gains_of(sent, (back < change)[..., None])
        asked = torch.zeros_like(sent)
        limp = (gains == 0).any(-1) & present[..., 0]
        asked[limp] = self.sac(torch.cat([obs[limp], gains[limp]], -1))
        command = commands_behind(sent, gains, asked, self._uniform(*sent.shape))
        return Histories(transitions(obs, command, next_obs) * present, gains[:, -1])

    def _gains_of(self, sent: Tensor, before: Tensor) -> Tensor:
        """Draw gains with which commands in [-1, 1] explain what was sent, one set before a change and one after.

        A motor that was sent nothing all the time may be dead.

        Args:
            sent: `(batch, window, act_dim)`, 0 in rows that are absent.
            before: `(batch, window, 1)`, the rows on one side of the change.

        Returns:
            The gains at every row, `(batch, window, act_dim)`.
        """

        def drawn(stretch: Tensor) -> Tensor:
            least = (sent.abs() * stretch).amax(1)
            gains = draw_gains(len(sent), self.act_dim, self.config, self.generator).maximum(least)
            dead = (least == 0) & (self._uniform(*least.shape) < self.config.relabel)
            return torch.where(dead, 0.0, gains)[:, None]

        return torch.where(before, drawn(before), drawn(~before))

    @torch.no_grad()
    def _roll_out(self) -> Rollouts:
        """Roll the policy out from states of the log in the world model, told what the module says."""
        config, window = self.config, self.config.window
        obs = self.log.obs[self._integers(len(self.log.obs), (config.adaptation_starts,))]
        gains = draw_gains(len(obs), self.act_dim, config, self.generator)
        rows = obs.new_zeros(len(obs), window + config.adaptation_horizon, 1 + 2 * self.obs_dim + self.act_dim)
        every = obs.new_zeros(len(obs), config.adaptation_horizon, self.act_dim)
        alive = torch.zeros(len(obs), config.adaptation_horizon, dtype=torch.bool, device=obs.device)
        told, running = torch.ones_like(gains), torch.ones_like(alive[:, 0])
        for step in range(config.adaptation_horizon):
            action = self.sac(torch.cat([obs, told], -1))
            sent = delivered(action, gains)
            moved = self.model.step(obs, sent, self.generator, penalty=config.penalty, terminated=self.terminated)
            rows[:, window + step] = transitions(obs, action, moved.next_obs)
            every[:, step], alive[:, step] = gains, running
            told = self.adaptation(rows[:, step + 1 : step + 1 + window]).clamp(0.0, config.gain_high)
            obs, running = moved.next_obs, running & (moved.terminal == 0)
            fresh = draw_gains(len(obs), self.act_dim, config, self.generator)
            gains = torch.where(self._uniform(len(obs), 1) < config.change_chance, fresh, gains)
        return Rollouts(rows, every, alive.nonzero())

    def _rolled_histories(self, rollouts: Rollouts, count: int) -> Histories:
        """Cut histories out of rollouts."""
        rollout, step = rollouts.ends[self._integers(len(rollouts.ends), (count,))].unbind(-1)
        span = torch.arange(1, self.config.window + 1, device=step.device)
        return Histories(rollouts.rows[rollout[:, None], step[:, None] + span], rollouts.gains[rollout, step])

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.generator.device)

    def _integers(self, below: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(below, shape, generator=self.generator, device=self.generator.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        return super().state_dict() | {
            "adaptation": self.adaptation.state_dict(),
            "adaptation_optimizer": self.adaptation_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        self.adaptation.load_state_dict(state["adaptation"])
        self.adaptation_optimizer.load_state_dict(state["adaptation_optimizer"])
