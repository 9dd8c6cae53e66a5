"""Fitting a model of transitions: Adam along a cosine, averaged weights, early stopping on held-out episodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from offline_train.diffusion.transition_model import TransitionModel

ADAM_BETAS = (0.9, 0.99)
# The held-out rows get the same noise at every look, so that two looks differ by the model alone.
HOLDOUT_SEED, HOLDOUT_ROWS, HOLDOUT_CHUNK = 0, 10_000, 1_000


class FitConfig(BaseModel):
    """Settings of a fit; the defaults are SynthER's but for early stopping, which its authors leave as future work."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(default=256, ge=1, description="transitions a gradient step")
    learning_rate: float = Field(default=3e-4, gt=0, description="Adam's step size, which falls to 0 along a cosine")
    max_steps: int = Field(default=100_000, ge=1, description="gradient steps at most")
    steps_per_epoch: int = Field(
        default=1_000, ge=1, description="gradient steps between two looks at the held-out loss"
    )
    patience: int = Field(default=10, ge=1, description="epochs without a lower held-out loss before stopping")
    clip: float = Field(default=1.0, gt=0, description="longest gradient")
    average_rate: float = Field(default=5e-3, gt=0, le=1, description="how far averaged weights move each time")
    average_every: int = Field(default=10, ge=1, description="gradient steps between two such moves")


class Examples(NamedTuple):
    """Rows to learn from.

    Attributes:
        rows: packed, `(rows, columns)`.
        change: takes rows, their places and a generator, and returns the rows as they are to be learned with their
            conditions `(batch, condition_dim)`; None for a model without conditions.
    """

    rows: Tensor
    change: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None

    def take(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The rows at the places `(batch,)` with their conditions, where there are any."""
        rows = self.rows.index_select(0, index)
        return (rows, None) if self.change is None else self.change(rows, index, generator)


@torch.no_grad()
def holdout_loss(model: TransitionModel, examples: Examples) -> float:
    """Mean loss on held-out rows, the first `HOLDOUT_ROWS` of them, under noise that is always the same."""
    device = examples.rows.device
    generator = torch.Generator(device).manual_seed(HOLDOUT_SEED)
    places = torch.arange(min(len(examples.rows), HOLDOUT_ROWS), device=device)
    losses = [model.losses(*examples.take(index, generator), generator) for index in places.split(HOLDOUT_CHUNK)]
    return float(torch.cat(losses).mean())


class ModelTrainer:
    """One fit, epoch by epoch, so that it can be shown, stopped and taken up again.

    Args:
        model: its scale fitted, its networks not.
        train: training rows.
        holdout: held-out rows.
        config: settings.
        generator: draws batches and noise.

    Attributes:
        average: the model with averaged weights, which is what is judged and kept.
    """

    def __init__(
        self,
        model: TransitionModel,
        train: Examples,
        holdout: Examples,
        config: FitConfig,
        generator: torch.Generator,
    ) -> None:
        self.model, self.train, self.holdout, self.config, self.generator = model, train, holdout, config, generator
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.parameters: list[Tensor] = [*model.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=ADAM_BETAS, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.max_steps)
        self.best_loss = float("inf")
        self.best_state = self._averaged()
        self.steps = self.epochs_without_gain = 0

    @property
    def finished(self) -> bool:
        """Whether the budget is spent or the held-out loss has stopped falling."""
        return self.steps >= self.config.max_steps or self.epochs_without_gain >= self.config.patience

    def step(self) -> Tensor:
        """One gradient step; returns the loss, still on the device."""
        rows = self.train.rows
        index = torch.randint(len(rows), (self.config.batch_size,), generator=self.generator, device=rows.device)
        loss = self.model.losses(*self.train.take(index, self.generator), self.generator).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip, foreach=True)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        if self.steps % self.config.average_every == 0:
            self._move_average()
        return loss.detach()

    @torch.no_grad()
    def _move_average(self) -> None:
        # A plain average at first, so that the random initial weights leave no trace in it.
        rate = max(self.config.average_every / self.steps, self.config.average_rate)
        torch._foreach_lerp_([*self.average.parameters()], self.parameters, rate)

    def _averaged(self) -> list[Tensor]:
        return [parameter.clone() for parameter in self.average.parameters()]

    def end_epoch(self) -> dict[str, float]:
        """Look at the held-out loss, keep the best averaged weights, and say where the fit stands."""
        loss = holdout_loss(self.average, self.holdout)
        gained = loss < self.best_loss
        self.epochs_without_gain = 0 if gained else self.epochs_without_gain + 1
        if gained:
            self.best_loss, self.best_state = loss, self._averaged()
        return {"holdout_loss": loss, "best_holdout_loss": self.best_loss}

    def run(self, report: Callable[[int, dict[str, float]], None] = lambda step, figures: None) -> TransitionModel:
        """Fit to the end; returns the model with the best averaged weights.

        Args:
            report: called after every epoch with the steps done and the epoch's figures.
        """
        while not self.finished:
            losses = [self.step() for _ in range(min(self.config.steps_per_epoch, self.config.max_steps - self.steps))]
            report(self.steps, {"loss": float(torch.stack(losses).mean()), **self.end_epoch()})
        with torch.no_grad():
            for parameter, best in zip(self.average.parameters(), self.best_state, strict=True):
                parameter.copy_(best)
        return self.average

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed fit needs to go on bit-equal."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "best_loss": self.best_loss,
            "best_state": self.best_state,
            "steps": self.steps,
            "epochs_without_gain": self.epochs_without_gain,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"].cpu())
        self.best_loss, self.steps = state["best_loss"], state["steps"]
        self.best_state = [best.to(self.train.rows.device) for best in state["best_state"]]
        self.epochs_without_gain = state["epochs_without_gain"]
