"""A variational autoencoder of transitions, which SynthER is compared with (Lu et al. 2023, table 2).

It has the sizes, the loss and the learned deviation of each column of the tabular VAE of Xu et al. 2019 (TVAE, arXiv
1907.00503). TVAE splits every column into the modes of a mixture; here columns are standardised, as SynthER's are.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from offline_train.diffusion.fit import FitConfig
from offline_train.diffusion.scale import RowScale
from offline_train.diffusion.transition_model import TransitionModel, Wish
from offline_train.networks import Mlp


class VaeConfig(FitConfig):
    """Settings of the VAE; sizes are TVAE's."""

    hidden: list[int] = Field(default=[128, 128], description="width of each hidden layer of encoder and decoder")
    code: int = Field(default=128, ge=1, description="size of the code")
    reconstruction_weight: float = Field(
        default=2.0, gt=0, description="of the reconstruction against the code's prior"
    )


def vae_losses(
    rows: Tensor, decoded: Tensor, log_std: Tensor, mean: Tensor, log_variance: Tensor, weight: float
) -> Tensor:
    """W sum_i [ (x_i - y_i)^2 / (2 s_i^2) + log s_i ] + KL( N(m, v) | N(0, 1) ), each row's `(batch,)`.

    Args:
        rows: x, `(batch, dim)`.
        decoded: y, `(batch, dim)`.
        log_std: log s of each column, `(dim,)`.
        mean: m, the code's, `(batch, code)`.
        log_variance: log v, `(batch, code)`.
        weight: w.
    """
    error = (rows - decoded).square() * (-2.0 * log_std).exp() / 2.0 + log_std
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return weight * error.sum(-1) + divergence.sum(-1)


class Vae(TransitionModel):
    """Encoder and decoder with a Gaussian of learned deviation around what is decoded.

    Args:
        scale: fitted to the log.
        config: settings.
        generator: draws initial weights.
    """

    def __init__(self, scale: RowScale, config: VaeConfig, generator: torch.Generator) -> None:
        super().__init__(scale)
        self.config = config
        self.encoder = Mlp([scale.dim, *config.hidden, 2 * config.code], generator)
        self.decoder = Mlp([config.code, *reversed(config.hidden), scale.dim], generator)
        self.log_std = nn.Parameter(torch.full((scale.dim,), math.log(0.1)))

    def losses(self, rows: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Each packed row's loss under one draw of its code, `(batch,)`."""
        modelled = self.scale.encode(rows)
        mean, log_variance = self.encoder(modelled).chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        decoded = self.decoder(mean + (0.5 * log_variance).exp() * noise)
        return vae_losses(modelled, decoded, self.log_std, mean, log_variance, self.config.reconstruction_weight)

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator, wish: Wish | None = None) -> Tensor:
        """Draw codes, decode them, and draw around what is decoded."""
        device = self.scale.mean.device
        decoded = self.decoder(torch.randn(count, self.config.code, generator=generator, device=device))
        noise = torch.randn(decoded.shape, generator=generator, device=device)
        return self.scale.decode(decoded + self.log_std.exp() * noise)
