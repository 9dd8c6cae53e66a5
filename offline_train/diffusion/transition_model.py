"""What every model of transitions that is fitted to a log offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offline_train.diffusion.scale import RowScale


class Wish(NamedTuple):
    """What rows are drawn for: a condition `(count, condition_dim)`, and how strongly it is followed.

    A weight of 1 draws from the distribution under the condition, more from a sharper one, 0 from that without it.
    """

    condition: Tensor
    weight: float


class TransitionModel(nn.Module, ABC):
    """A distribution of packed rows.

    Args:
        scale: from packed rows to those that the networks read, fitted.
    """

    def __init__(self, scale: RowScale) -> None:
        super().__init__()
        self.scale = scale

    @abstractmethod
    def losses(self, rows: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Each packed row's loss, `(batch,)`.

        Args:
            rows: `(batch, columns)`.
            condition: `(batch, condition_dim)`, None for a model without conditions.
            generator: draws noise.
        """

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator, wish: Wish | None = None) -> Tensor:
        """Draw packed rows `(count, columns)`; without a wish, from the distribution of the log."""
