"""SynthER online (Lu et al. 2023, algorithm 1): SAC whose batches are half real, half drawn from a diffusion model.

Every 10,000 control steps a new model is fitted to all that the robot has done, and a million transitions are drawn
from it in the place of those drawn before. SAC then learns twenty times from each step without a change to the
algorithm: REDQ's schedule with two critics, both of them bootstrapped from, as the authors' code has it.

The authors model no terminals and leave rewards as they are in dm_control; here what never changes is not modelled,
and everything but terminals is standardised, in every environment.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.redq import RedqConfig
from offline_train.algorithms.sac_online import OnlineSac
from offline_train.diffusion.fit import Examples, ModelTrainer
from offline_train.diffusion.scale import RowScale
from offline_train.diffusion.synther import Diffusion, DiffusionConfig
from offline_train.replay import Batch, draw

HOLDOUT_SHARE = 0.05
CHUNK = 10_000


class OnlineSyntherConfig(RedqConfig):
    """Settings of SynthER online; the defaults are its authors', but for early stopping."""

    name: Literal["synther"] = "synther"  # type: ignore[assignment]
    critics: int = Field(default=2, ge=1, description="N, how many critics")
    real_fraction: float = Field(default=0.5, ge=0, le=1, description="share of every batch that is real")
    refresh_every: int = Field(default=10_000, ge=1, description="control steps between two models")
    synthetic_rows: int = Field(default=1_000_000, ge=1, description="transitions drawn from each")
    diffusion: DiffusionConfig = DiffusionConfig(embedding=256)


class OnlineSynther(OnlineSac):
    """SAC with a replay of its own and a synthetic one; takes what `OnlineSac` takes.

    Attributes:
        synthetic: packed rows, none before the first model.
        models: how many were fitted so far.
    """

    config: OnlineSyntherConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.synthetic = self.replay.rows[:0]
        self.models = 0

    def train_epoch(self) -> dict[str, float]:
        """Act, update and fit models where they are due; adds the last one's held-out loss and gradient steps."""
        self.fits: dict[str, float] = {}
        return {**super().train_epoch(), **self.fits}

    def _step(self, *args: Any) -> list[float]:
        ended = super()._step(*args)
        # After the last control step a new model would be of use for that one alone.
        if self.steps // self.config.refresh_every > self.models and self.steps < self.control_steps:
            self._refresh()
        return ended

    def _refresh(self) -> None:
        """Fit a new model to the whole replay and draw from it."""
        rows = self.replay.rows[: self.replay.size]
        order = torch.randperm(len(rows), generator=self.generator, device=self.device)
        holdout, train = order.split([n := max(round(HOLDOUT_SHARE * len(rows)), 1), len(rows) - n])
        scale = RowScale(self.replay.obs_dim, self.replay.act_dim).to(self.device).fit(rows)
        with torch.device(self.device):
            model = Diffusion(scale, self.config.diffusion, self.generator)
        trainer = ModelTrainer(
            model, Examples(rows[train]), Examples(rows[holdout]), self.config.diffusion, self.generator
        )
        fitted = trainer.run()
        counts = [CHUNK] * (self.config.synthetic_rows // CHUNK) + [self.config.synthetic_rows % CHUNK]
        self.synthetic = torch.cat([fitted.draw(count, self.generator) for count in counts if count])
        self.models = self.steps // self.config.refresh_every
        self.fits = {"model_holdout_loss": trainer.best_loss, "model_steps": trainer.steps}

    def _batch(self) -> Batch:
        size = self.config.batch_size
        real = round(self.config.real_fraction * size) if len(self.synthetic) else size
        rows = draw(self.replay.rows, self.replay.size, real, self.generator)
        if real < size:
            rows = torch.cat([rows, draw(self.synthetic, len(self.synthetic), size - real, self.generator)])
        return Batch.unpack(rows, self.replay.obs_dim, self.replay.act_dim)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        return {**super().state_dict(), "synthetic": self.synthetic, "models": self.models}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        synthetic: Tensor = state["synthetic"]
        self.synthetic, self.models = synthetic.to(self.device), state["models"]
