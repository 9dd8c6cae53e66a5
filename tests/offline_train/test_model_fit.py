"""Models of transitions: the fit, and one battery for every model that is fitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import PUSH, state_equal, toy_batch, toy_step

from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.diffusion.edm import SamplerConfig
from offline_train.diffusion.fit import Examples, FitConfig, ModelTrainer, holdout_loss
from offline_train.diffusion.scale import RowScale
from offline_train.diffusion.synther import Diffusion, DiffusionConfig
from offline_train.diffusion.transition_model import TransitionModel, Wish
from offline_train.diffusion.vae import Vae, VaeConfig, vae_losses
from offline_train.replay import Batch

SHORT: dict[str, Any] = {"max_steps": 40, "steps_per_epoch": 10, "batch_size": 64}
SAMPLER = SamplerConfig(steps=12, churn=0.0)
TRAIN, HOLDOUT = toy_batch(2_000, seed=1).pack(), toy_batch(400, seed=2).pack()


def diffusion(seed: int = 0, **settings: Any) -> tuple[TransitionModel, FitConfig]:
    config = DiffusionConfig(**{"width": 32, "depth": 2, "embedding": 16, "sampler": SAMPLER, **settings})
    return Diffusion(RowScale(2, 2).fit(TRAIN), config, torch.Generator().manual_seed(seed)), config


def vae(seed: int = 0, **settings: Any) -> tuple[TransitionModel, FitConfig]:
    config = VaeConfig(**{"hidden": [32, 32], "code": 8, **settings})
    return Vae(RowScale(2, 2).fit(TRAIN), config, torch.Generator().manual_seed(seed)), config


MODELS = {"diffusion": diffusion, "vae": vae}
Make = Callable[..., tuple[TransitionModel, FitConfig]]


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Make:
    return MODELS[request.param]


def trainer(make: Make, seed: int = 0, **settings: Any) -> ModelTrainer:
    model, config = make(seed, **{**SHORT, **settings})
    return ModelTrainer(model, Examples(TRAIN), Examples(HOLDOUT), config, torch.Generator().manual_seed(seed))


def test_fit_lowers_the_held_out_loss(make: Make) -> None:
    fit = trainer(make, max_steps=200, steps_per_epoch=100, learning_rate=3e-3, average_rate=0.1)
    start = holdout_loss(fit.model, fit.holdout)
    fitted = fit.run()
    assert fit.best_loss == pytest.approx(holdout_loss(fitted, fit.holdout))
    # A negative log likelihood has no natural size, so the gain is asked for in absolute terms.
    assert fit.best_loss < start - 0.2


def test_resume_is_equal_to_the_bit(make: Make, tmp_path: Path) -> None:
    whole = trainer(make)
    whole.run()
    first = trainer(make)
    for _ in range(2):
        for _ in range(10):
            first.step()
        first.end_epoch()
    save_checkpoint(tmp_path / "fit.safetensors", first.state_dict())
    second = trainer(make, seed=7)
    second.load_state_dict(load_checkpoint(tmp_path / "fit.safetensors"))
    second.run()
    assert state_equal(whole.state_dict(), second.state_dict())


def test_stops_early_where_nothing_is_gained(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offline_train.diffusion.fit.holdout_loss", lambda model, examples: 1.0)
    epochs = []
    trainer(make, max_steps=1_000, patience=2).run(lambda step, figures: epochs.append(step))
    # The first epoch counts as a gain over infinity, then two without.
    assert epochs == [10, 20, 30]


def test_best_averaged_weights_are_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr("offline_train.diffusion.fit.holdout_loss", lambda model, examples: next(losses))
    fit = trainer(make)
    kept = []
    fitted = fit.run(lambda step, figures: kept.append([p.clone() for p in fit.average.parameters()]))
    assert all(map(torch.equal, fitted.parameters(), kept[1]))
    assert not all(map(torch.equal, kept[3], kept[1]))


def test_average_is_plain_at_first_and_then_slow() -> None:
    fit = trainer(diffusion, average_every=2, average_rate=0.4)
    seen = []
    for _ in range(6):
        fit.step()
        seen.append([p.detach().clone() for p in fit.parameters])
    # Moves at steps 2, 4 and 6 with rates 2/2, 2/4 and max(2/6, 0.4).
    expected = torch.lerp(torch.lerp(seen[1][0], seen[3][0], 0.5), seen[5][0], 0.4)
    torch.testing.assert_close(next(fit.average.parameters()), expected)


def test_draws_are_a_function_of_the_generator(make: Make) -> None:
    model, _ = make()
    drawn = [model.draw(20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0].shape == (20, TRAIN.shape[1])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_is_drawn_is_of_the_logs_distribution() -> None:
    fit = trainer(diffusion, max_steps=800, steps_per_epoch=400, learning_rate=3e-3, width=64, average_rate=0.1)
    drawn = Batch.unpack(fit.run().draw(4_000, torch.Generator().manual_seed(0)), 2, 2)
    real = Batch.unpack(TRAIN, 2, 2)
    for found, wanted in ((drawn.obs, real.obs), (drawn.action, real.action), (drawn.next_obs, real.next_obs)):
        torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=0.1, rtol=0)
        torch.testing.assert_close(found.std(0), wanted.std(0), atol=0.1, rtol=0)
    # The rows hold together: the next place is where the robot would be pushed to, the reward that of the place.
    mean, reward = toy_step(drawn.obs, drawn.action)
    moved = (drawn.next_obs - mean).square().mean().sqrt()
    assert float(moved) < 0.1 < float(PUSH * real.action.std())
    assert float((drawn.reward - reward).abs().mean()) < 0.2 < 0.4 < float((drawn.reward - reward.flip(0)).abs().mean())
    assert not drawn.terminal.any()


def test_vae_losses_by_hand() -> None:
    # Errors 1 and 2 under deviations 1 and 2: 1/2 + 0 and 4/8 + log 2, twice: 2 + 2 log 2. A code of mean 1 and
    # variance 1: half of 1 + 1 - 1 - 0.
    rows, decoded = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    log_std = torch.tensor([1.0, 2.0]).log()
    found = vae_losses(rows, decoded, log_std, torch.ones(1, 1), torch.zeros(1, 1), weight=2.0)
    torch.testing.assert_close(found, 2.0 + 2.0 * torch.tensor([2.0]).log() + 0.5)


def test_condition_is_learned_and_drawn() -> None:
    # A row's condition is the side that it is on; those asked for on one side lie there.
    def side(rows: torch.Tensor, index: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return rows, rows[:, :1].sign()

    network: dict[str, Any] = {"width": 64, "depth": 2, "embedding": 32, "sampler": SAMPLER, "condition_dropout": 0.5}
    config = DiffusionConfig(**network, max_steps=500, learning_rate=3e-3, average_rate=0.1)
    model = Diffusion(RowScale(2, 2).fit(TRAIN), config, torch.Generator().manual_seed(0), condition_dim=1)
    fit = ModelTrainer(model, Examples(TRAIN, side), Examples(HOLDOUT, side), config, torch.Generator().manual_seed(0))
    fitted = fit.run()

    def share(wish: Wish | None) -> float:
        return float((fitted.draw(1_000, torch.Generator().manual_seed(0), wish)[:, 0] > 0).float().mean())

    right = torch.ones(1_000, 1)
    assert share(None) == pytest.approx(0.5, abs=0.15)
    assert share(Wish(right, 1.0)) > 0.8
    assert share(Wish(-right, 1.0)) < 0.2
