"""Fitting the ensemble: negative log likelihood, bootstraps, early stopping on held-out episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from offline_train.models.ensemble import DynamicsEnsemble

# MOPO's weight decays, layer by layer, the last for both heads (the bnn configuration of its published code).
WEIGHT_DECAYS = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
LOG_VARIANCE_BOUND_WEIGHT = 0.01


class EnsembleConfig(BaseModel):
    """Settings of the dynamics ensemble."""

    model_config = ConfigDict(extra="forbid")

    members: int = Field(default=7, ge=1, description="networks trained")
    elites: int = Field(default=5, ge=1, description="networks, best on held-out episodes, that rollouts draw from")
    hidden: list[int] = Field(default=[200, 200, 200, 200], description="width of each hidden layer")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's step size, decayed to a tenth along a cosine")
    batch_size: int = Field(default=256, ge=1, description="transitions per member and step")
    max_steps: int = Field(default=20_000, ge=1, description="gradient steps at most")
    steps_per_epoch: int = Field(
        default=1_000, ge=1, description="gradient steps between two looks at the held-out error"
    )
    patience: int = Field(default=5, ge=1, description="epochs without a gain of 1 % in any member before stopping")
    holdout_fraction: float = Field(default=0.05, gt=0, lt=1, description="share of the episodes held out")

    @model_validator(mode="after")
    def _makes_sense(self) -> EnsembleConfig:
        if self.elites > self.members:
            raise ValueError(f"elites={self.elites} cannot be chosen from members={self.members}")
        return self


class FitData(NamedTuple):
    """Normalised network inputs `(rows, in_dim)` and targets `(rows, obs_dim + 1)`."""

    inputs: Tensor
    targets: Tensor


def gaussian_nll(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Sum over members of the mean over rows and dimensions of (mean - target)^2 / variance + log variance."""
    return ((mean - target).square() * (-log_variance).exp() + log_variance).mean(dim=(1, 2)).sum()


def bound_loss(model: DynamicsEnsemble) -> Tensor:
    """The pull that keeps the learned bounds of the log variance together (Chua et al. 2018, appendix A.1)."""
    return LOG_VARIANCE_BOUND_WEIGHT * (model.max_log_variance.sum() - model.min_log_variance.sum())


def set_normalisers(model: DynamicsEnsemble, obs: Tensor, action: Tensor, next_obs: Tensor, reward: Tensor) -> None:
    """Take the mean and standard deviation of inputs and targets from the training transitions."""
    inputs, targets = torch.cat([obs, action], -1), torch.cat([next_obs - obs, reward[:, None]], -1)
    for name, values in (("input", inputs), ("target", targets)):
        std = values.std(0)
        getattr(model, f"{name}_mean").copy_(values.mean(0))
        getattr(model, f"{name}_std").copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


def fit_data(model: DynamicsEnsemble, obs: Tensor, action: Tensor, next_obs: Tensor, reward: Tensor) -> FitData:
    """Normalise transitions into what the network reads and what it has to say."""
    targets = torch.cat([next_obs - obs, reward[:, None]], -1)
    return FitData(model.normalise(obs, action), (targets - model.target_mean) / model.target_std)


def holdout_error(model: DynamicsEnsemble, data: FitData, chunk: int = 1_000) -> Tensor:
    """Every member's mean squared error on held-out rows, per normalised dimension, `(members, obs_dim + 1)`."""
    with torch.no_grad():
        squared = [
            (model(inputs.expand(model.members, -1, -1))[0] - targets).square().sum(1)
            for inputs, targets in zip(data.inputs.split(chunk), data.targets.split(chunk), strict=True)
        ]
    return torch.stack(squared).sum(0) / len(data.inputs)


class EnsembleTrainer:
    """One fit of an ensemble, epoch by epoch, so that it can be shown, stopped and taken up again.

    Args:
        model: the ensemble, its normalisers set.
        train: training rows.
        holdout: held-out rows.
        config: settings.
        generator: draws bootstraps and batches.
    """

    def __init__(
        self,
        model: DynamicsEnsemble,
        train: FitData,
        holdout: FitData,
        config: EnsembleConfig,
        generator: torch.Generator,
    ) -> None:
        self.model, self.train, self.holdout, self.config, self.generator = model, train, holdout, config, generator
        layers = [*model.layers, model.mean_head]
        groups = [
            {"params": [*layer.parameters()], "weight_decay": decay}
            for layer, decay in zip(layers, _decays(len(layers)), strict=True)
        ]
        groups.append({"params": [*model.log_variance_head.parameters()], "weight_decay": WEIGHT_DECAYS[-1]})
        groups.append({"params": [model.max_log_variance, model.min_log_variance], "weight_decay": 0.0})
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, config.max_steps, eta_min=config.learning_rate / 10
        )
        rows = len(train.inputs)
        # Every member sees its own resampling of the data, drawn once (bootstrap).
        self.bootstrap = torch.randint(rows, (model.members, rows), generator=generator, device=train.inputs.device)
        self.best_error = torch.full((model.members,), float("inf"))
        # What counts as a gain is 1 % below this; it moves with gains alone, as in MOPO's and Lu et al.'s code.
        self.error_to_beat = self.best_error.clone()
        self.best_state = [p.detach().clone() for p in model.parameters()]
        self.steps = self.epochs_without_gain = 0

    @property
    def finished(self) -> bool:
        """Whether the budget is spent or the held-out error has stopped falling."""
        return self.steps >= self.config.max_steps or self.epochs_without_gain >= self.config.patience

    def step(self) -> Tensor:
        """One gradient step of all members; returns the loss, still on the device."""
        members, rows = self.bootstrap.shape
        column = torch.randint(
            rows, (members, self.config.batch_size), generator=self.generator, device=self.bootstrap.device
        )
        index = self.bootstrap.gather(1, column).flatten()
        inputs = self.train.inputs.index_select(0, index).view(members, self.config.batch_size, -1)
        targets = self.train.targets.index_select(0, index).view(members, self.config.batch_size, -1)
        mean, log_variance = self.model(inputs)
        loss = gaussian_nll(mean, log_variance, targets) + bound_loss(self.model)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        return loss.detach()

    def end_epoch(self) -> dict[str, float]:
        """Look at the held-out error, keep every member's best weights, and say where the fit stands."""
        error = holdout_error(self.model, self.holdout).mean(-1).cpu()
        improved = error < 0.99 * self.error_to_beat
        self.error_to_beat = torch.where(improved, error, self.error_to_beat)
        self.epochs_without_gain = 0 if bool(improved.any()) else self.epochs_without_gain + 1
        for best, now in zip(self.best_state, self.model.parameters(), strict=True):
            if now.dim() == 3:
                better = (error < self.best_error).to(now.device)
                best[better] = now.detach()[better]
            else:
                best.copy_(now.detach())
        self.best_error = torch.minimum(self.best_error, error)
        return {"holdout_mse": float(error.mean()), "best_holdout_mse": float(self.best_error.mean())}

    def run(self, report: Callable[[int, dict[str, float]], None]) -> None:
        """Fit to the end, then put the best weights in place and name the elites.

        Args:
            report: called after every epoch with the steps done and the epoch's figures.
        """
        while not self.finished:
            for _ in range(min(self.config.steps_per_epoch, self.config.max_steps - self.steps)):
                self.step()
            report(self.steps, self.end_epoch())
        self.finish()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed fit needs to go on bit-equal."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "bootstrap": self.bootstrap,
            "best_error": self.best_error,
            "error_to_beat": self.error_to_beat,
            "best_state": self.best_state,
            "steps": self.steps,
            "epochs_without_gain": self.epochs_without_gain,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        device = self.bootstrap.device
        self.bootstrap, self.best_error = state["bootstrap"].to(device), state["best_error"]
        self.error_to_beat = state["error_to_beat"]
        self.best_state = [best.to(device) for best in state["best_state"]]
        self.steps, self.epochs_without_gain = state["steps"], state["epochs_without_gain"]

    def finish(self) -> None:
        """Put every member's best weights in place and choose the elites."""
        with torch.no_grad():
            for parameter, best in zip(self.model.parameters(), self.best_state, strict=True):
                parameter.copy_(best)
        self.model.elite_index.copy_(self.best_error.argsort()[: self.config.elites])


def _decays(layers: int) -> list[float]:
    """MOPO's decays for as many layers as there are: the last value for the head, the others in order."""
    inner = [WEIGHT_DECAYS[min(i, len(WEIGHT_DECAYS) - 2)] for i in range(layers - 1)]
    return [*inner, WEIGHT_DECAYS[-1]]
