"""The denoiser of SynthER: a residual multilayer perceptron that reads a noisy transition and how noisy it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from offline_train.networks import new_linear

# Half of the 16 random Fourier features are sines, half cosines (SynthER, table 6).
FREQUENCIES = 8


class Denoiser(nn.Module):
    """F of EDM: `depth` residual layers x + linear(relu(x)) of one width (SynthER, equation 3).

    The noise level is told by random Fourier features, beside the level itself, through two layers that are added to
    what the first layer makes of the row, as in the published code.

    Args:
        dim: size of a row.
        generator: draws weights and frequencies.
        width: of the residual layers.
        depth: how many of them.
        embedding: size of the first layer's output and of the noise level's embedding.
        condition_dim: how many numbers a row may be conditioned on; 0 for a model without conditions.

    Attributes:
        bf16: whether products are made in bfloat16; weights stay in float32.
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        generator: torch.Generator,
        *,
        width: int = 1024,
        depth: int = 6,
        embedding: int = 128,
        condition_dim: int = 0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.condition_dim, self.bf16 = dim, condition_dim, bf16
        self.register_buffer("frequencies", torch.randn(FREQUENCIES, generator=generator, device=generator.device))
        # One number more says whether the condition is known at all.
        inputs = dim + (condition_dim + 1 if condition_dim else 0)
        self.input = new_linear(inputs, embedding, generator)
        self.level = nn.Sequential(
            new_linear(2 * FREQUENCIES + 1, embedding, generator),
            nn.SiLU(),
            new_linear(embedding, embedding, generator),
        )
        self.widen = new_linear(embedding, width, generator)
        self.residual = nn.ModuleList(new_linear(width, width, generator) for _ in range(depth))
        self.output = new_linear(width, dim, generator)

    def forward(self, rows: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return F `(batch, dim)`.

        Args:
            rows: `(batch, dim)`, scaled by c_in.
            level: c_noise, `(batch, 1)`, or `(1, 1)` for all rows alike.
            condition: `(batch, condition_dim + 1)` from `known` or `unknown`; left out where the model has none.
        """
        if condition is not None:
            rows = torch.cat([rows, condition], -1)
        angles = 2.0 * math.pi * level * self.frequencies
        features = torch.cat([level, angles.sin(), angles.cos()], -1)
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = self.widen(self.input(rows) + self.level(features))
            for layer in self.residual:
                hidden = hidden + layer(functional.relu(hidden))
            return self.output(functional.relu(hidden)).float()


def known(condition: Tensor) -> Tensor:
    """A condition `(batch, condition_dim)` as the denoiser reads it, `(batch, condition_dim + 1)`."""
    return torch.cat([condition, torch.ones_like(condition[:, :1])], -1)


def unknown(condition: Tensor) -> Tensor:
    """The condition that says nothing, of the shape of `known`."""
    return torch.zeros_like(known(condition))
