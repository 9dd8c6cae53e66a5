"""SynthER's model: an elucidated diffusion model of transitions, with classifier-free guidance beyond the paper."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from offline_train.diffusion.denoiser import Denoiser, known, unknown
from offline_train.diffusion.edm import SamplerConfig, denoise, denoising_losses, draw_sigma, sample
from offline_train.diffusion.fit import FitConfig
from offline_train.diffusion.scale import RowScale
from offline_train.diffusion.transition_model import TransitionModel, Wish


class DiffusionConfig(FitConfig):
    """Settings of SynthER; the defaults are the authors' but for early stopping."""

    width: int = Field(default=1024, ge=1, description="of the residual layers")
    depth: int = Field(default=6, ge=1, description="residual layers")
    embedding: int = Field(default=128, ge=1, description="size of the embedding of row and noise level")
    bf16: bool = Field(default=False, description="whether products are made in bfloat16")
    condition_dropout: float = Field(
        default=0.1, ge=0, le=1, description="share of the rows that are learned without their condition"
    )
    sampler: SamplerConfig = SamplerConfig()


class Diffusion(TransitionModel):
    """SynthER: an elucidated diffusion model of standardised rows (Lu et al. 2023, section 3).

    With a condition it is learned with and without it, and the two are extrapolated when rows are drawn
    (classifier-free guidance, Ho and Salimans 2022, arXiv 2207.12598), which the paper leaves out.

    Args:
        scale: fitted to the log.
        config: settings.
        generator: draws initial weights.
        condition_dim: how many numbers a row may be conditioned on.
    """

    def __init__(
        self, scale: RowScale, config: DiffusionConfig, generator: torch.Generator, condition_dim: int = 0
    ) -> None:
        super().__init__(scale)
        self.config = config
        self.denoiser = Denoiser(
            scale.dim,
            generator,
            width=config.width,
            depth=config.depth,
            embedding=config.embedding,
            condition_dim=condition_dim,
            bf16=config.bf16,
        )

    def losses(self, rows: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Each row's denoising loss at a noise level of its own, `(batch,)`."""
        modelled = self.scale.encode(rows)
        sigma = draw_sigma(len(rows), generator)
        noise = torch.randn(modelled.shape, generator=generator, device=modelled.device)
        told = None
        if condition is not None:
            dropped = torch.rand(len(rows), 1, generator=generator, device=rows.device) < self.config.condition_dropout
            told = torch.where(dropped, unknown(condition), known(condition))
        return denoising_losses(lambda x, level: self.denoiser(x, level, told), modelled, sigma, noise)

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator, wish: Wish | None = None) -> Tensor:
        """Draw packed rows `(count, columns)` by the sampler."""
        device = self.scale.mean.device
        start = torch.randn(count, self.scale.dim, generator=generator, device=device)
        if wish is None and self.denoiser.condition_dim:
            wish = Wish(torch.zeros(count, self.denoiser.condition_dim, device=device), weight=0.0)

        def expected(rows: Tensor, sigma: Tensor) -> Tensor:
            if wish is None:
                return denoise(self.denoiser, rows, sigma)
            return guided(self.denoiser, rows, sigma, wish)

        return self.scale.decode(sample(expected, start, self.config.sampler, generator))


def guided(denoiser: Denoiser, rows: Tensor, sigma: Tensor, wish: Wish) -> Tensor:
    """D_0 + w (D_c - D_0), the denoiser without and with the condition, `(batch, dim)`; one of them where w says so."""

    def expected(told: Tensor) -> Tensor:
        return denoise(lambda x, level: denoiser(x, level, told), rows, sigma)

    if wish.weight == 0.0:
        return expected(unknown(wish.condition))
    if wish.weight == 1.0:
        return expected(known(wish.condition))
    return torch.lerp(expected(unknown(wish.condition)), expected(known(wish.condition)), wish.weight)
