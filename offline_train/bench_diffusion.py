"""What `surefoot bench name=diffusion` measures: SynthER's fit and sampling, on transitions of HalfCheetah's shape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from offline_train import bench_reference as plain
from offline_train.bench_cases import ACT_DIM, OBS_DIM, Case, Peer, packed, repeated, transitions
from offline_train.diffusion.edm import SamplerConfig, noise_levels
from offline_train.diffusion.fit import Examples, ModelTrainer
from offline_train.diffusion.scale import RowScale
from offline_train.diffusion.synther import Diffusion, DiffusionConfig

WIDTH, BATCH_SIZE, LOG_ROWS, DRAWN_ROWS = 1024, 256, 20_000, 512
FULL, FAST = SamplerConfig(), SamplerConfig(solver="multistep", steps=32, churn=0)
# Network evaluations are all alike, so a few steps tell the speed of many.
TIMED_STEPS = 4
DIFFUSION_CASES = 6

DIFFUSION_CAPTION = (
    f"Best repeat (median), width {WIDTH:,}, six residual layers. fit: gradient steps, batch {BATCH_SIZE}. sampling: "
    f"transitions of {FULL.steps} stochastic steps, {FULL.evaluations} evaluations of the network, or of {FAST.steps} "
    f"steps of the multistep solver, {FAST.evaluations} evaluations; timed over {TIMED_STEPS} steps of {DRAWN_ROWS} "
    f"rows. plain: an ordinary implementation in float32, which always samples with {FULL.steps} steps, in this run. "
    "peer: measured on another machine."
)


def diffusion_cases(_: Path) -> Iterator[Case]:
    """Every case, one after another."""
    for bf16 in (False, True):
        yield fit_case(bf16)
    for sampler in (FULL, FAST):
        for bf16 in (False, True):
            yield sampling_case(bf16, sampler)


def new_model(bf16: bool, log: torch.Tensor) -> Diffusion:
    """An unfitted model of full width."""
    # Every column changes, so the model reads as many of them as HalfCheetah's log has that change.
    scale = RowScale(OBS_DIM, ACT_DIM).fit(log)
    config = DiffusionConfig(width=WIDTH, batch_size=BATCH_SIZE, bf16=bf16)
    return Diffusion(scale, config, torch.Generator().manual_seed(0))


def precision(bf16: bool) -> str:
    """How the case's name says it."""
    return "bf16" if bf16 else "fp32"


def fit_case(bf16: bool) -> Case:
    """Gradient steps, sampling of the batch, clipping and averaging included."""
    fields, generator = transitions(LOG_ROWS, np.random.default_rng(0)), np.random.default_rng(0)
    log = packed(fields)
    model = new_model(bf16, log)
    trainer = ModelTrainer(model, Examples(log), Examples(log), model.config, torch.Generator().manual_seed(0))
    ordinary = plain.PlainDiffusion(model.scale.dim, WIDTH)
    rows = model.scale.encode(log).numpy()

    def plain_step() -> None:
        ordinary.update(rows[generator.integers(0, len(rows), BATCH_SIZE)])

    ours, theirs = repeated(trainer.step, 20), repeated(plain_step, 20)
    return Case(f"diffusion fit, {precision(bf16)}", "steps", ours, theirs, peer=Peer("SynthER", 10))


def sampling_case(bf16: bool, sampler: SamplerConfig) -> Case:
    """Transitions drawn; both sides take a few steps from noise to none, and count their share of a transition."""
    log = packed(transitions(LOG_ROWS, np.random.default_rng(0)))
    model, generator = new_model(bf16, log), torch.Generator().manual_seed(0)
    ordinary = plain.PlainDiffusion(model.scale.dim, WIDTH)
    timed, timed_plain = (each.model_copy(update={"steps": TIMED_STEPS}) for each in (sampler, FULL))
    model.config = model.config.model_copy(update={"sampler": timed})
    levels = noise_levels(timed_plain)

    def ours(share: float) -> int:
        rows = max(round(DRAWN_ROWS * share), 1)
        model.draw(rows, generator)
        return max(round(rows * timed.evaluations / sampler.evaluations), 1)

    def theirs(share: float) -> int:
        rows = max(round(DRAWN_ROWS * share), 1)
        ordinary.sample(rows, levels)
        return max(round(rows * timed_plain.evaluations / FULL.evaluations), 1)

    name = f"diffusion sampling, {sampler.solver}, {sampler.steps} steps, {precision(bf16)}"
    return Case(name, "transitions", ours, theirs, peer=Peer("SynthER", 45))
