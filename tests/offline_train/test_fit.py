"""Fitting the ensemble: the loss by hand, early stopping, elites, resuming to the bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from toy import state_equal, toy_batch, toy_trainer

from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.fit import (
    EnsembleConfig,
    EnsembleTrainer,
    bound_loss,
    fit_data,
    gaussian_nll,
    holdout_error,
    set_normalisers,
)

SMALL = EnsembleConfig(
    members=3, elites=2, hidden=[16, 16], learning_rate=3e-3, max_steps=120, steps_per_epoch=20, batch_size=64
)


def ignore(step: int, figures: dict[str, float]) -> None:
    """A report that nobody reads."""


def test_gaussian_nll() -> None:
    # Member 0: ((1 - 3)^2 / 2 + log 2 + 0 + 0) / 2 dims = 1 + log(2) / 2; member 1: (1 / 1 + 0 + 4 / 4 + log 4) / 2.
    mean = torch.tensor([[[1.0, 5.0]], [[2.0, 3.0]]])
    target = torch.tensor([[[3.0, 5.0]], [[3.0, 5.0]]])
    log_variance = torch.tensor([[[2.0, 1.0]], [[1.0, 4.0]]]).log()
    expected = (1.0 + math.log(2.0) / 2) + (2.0 + math.log(4.0)) / 2
    assert float(gaussian_nll(mean, log_variance, target)) == pytest.approx(expected)


def test_gaussian_nll_is_least_at_the_true_variance() -> None:
    # d/dv (e / v + log v) = 0 at v = e: the squared error itself, 4.
    zero, target = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0)
    log_variance = torch.full((1, 1, 1), math.log(4.0), requires_grad=True)
    gaussian_nll(zero, log_variance, target).backward()
    assert log_variance.grad is not None and float(log_variance.grad) == pytest.approx(0.0, abs=1e-6)


def test_bound_loss() -> None:
    # Three targets, bounds 0.5 and -10: 0.01 (1.5 + 30) = 0.315.
    model = DynamicsEnsemble(2, 2, torch.Generator(), members=2, elites=1, hidden=(4,))
    assert float(bound_loss(model).detach()) == pytest.approx(0.315)


def test_normalisers_standardise_inputs_and_targets() -> None:
    model = DynamicsEnsemble(2, 2, torch.Generator(), members=2, elites=1, hidden=(4,))
    batch = toy_batch(500, seed=0)
    obs = batch.obs * torch.tensor([100.0, 0.0]) + 7.0
    set_normalisers(model, obs, batch.action, obs + batch.action, batch.reward)
    data = fit_data(model, obs, batch.action, obs + batch.action, batch.reward)
    torch.testing.assert_close(data.targets.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.targets.std(0), torch.ones(3), atol=1e-4, rtol=0)
    # The second observation never changes: its deviation is 1, not 0.
    torch.testing.assert_close(data.inputs.std(0), torch.tensor([1.0, 0.0, 1.0, 1.0]), atol=1e-4, rtol=0)


def test_holdout_error_by_hand() -> None:
    trainer = toy_trainer(SMALL)
    model, data = trainer.model, trainer.holdout
    mean, _ = model(data.inputs.expand(3, -1, -1))
    expected = (mean - data.targets).square().mean(1)
    torch.testing.assert_close(holdout_error(model, data, chunk=70), expected.detach())


def test_fit_lowers_loss_and_held_out_error() -> None:
    trainer = toy_trainer(SMALL)
    start, first = float(holdout_error(trainer.model, trainer.holdout).mean()), float(trainer.step())
    trainer.run(ignore)
    assert float(holdout_error(trainer.model, trainer.holdout).mean()) < 0.4 * start
    assert float(trainer.step()) < first - 1.0


def test_every_member_sees_its_own_bootstrap() -> None:
    trainer = toy_trainer(SMALL)
    rows = len(trainer.train.inputs)
    assert trainer.bootstrap.shape == (3, rows)
    for member in range(3):
        # A bootstrap holds 1 - 1/e = 63 % of the rows.
        assert len(trainer.bootstrap[member].unique()) / rows == pytest.approx(1 - 1 / math.e, abs=0.03)
    assert not torch.equal(trainer.bootstrap[0], trainer.bootstrap[1])


def test_finish_puts_the_best_weights_and_the_best_members_in_place() -> None:
    trainer = toy_trainer(SMALL)
    for _ in range(60):
        trainer.step()
    trainer.end_epoch()
    best = trainer.best_error.clone()
    # Wreck the weights of every member but the first, whose improvement must be kept.
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.dim() == 3:
                parameter[1:] += 1.0
    for _ in range(5):
        trainer.step()
    trainer.end_epoch()
    assert torch.equal(trainer.best_error[1:], best[1:])
    trainer.finish()
    found = holdout_error(trainer.model, trainer.holdout).mean(-1)
    torch.testing.assert_close(found, trainer.best_error)
    order = trainer.best_error.argsort()
    assert trainer.model.elite_index.tolist() == order[:2].tolist()


def test_stops_early_where_nothing_is_gained() -> None:
    trainer = toy_trainer(SMALL.model_copy(update={"learning_rate": 1e-12, "patience": 2, "max_steps": 10_000}))
    epochs = []
    trainer.run(lambda step, figures: epochs.append(step))
    # The first epoch counts as a gain over infinity, then two without.
    assert epochs == [20, 40, 60]


def test_small_gains_add_up_to_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every epoch gains 0.6 %: one after another is below 1 %, but every second time it is 0.994^2 = 0.988 < 0.99 of the
    # error to beat. Three epochs of 0.4 % make 0.988, too, but after two (0.992) patience has ended.
    for gain, epochs in ((0.006, 50), (0.004, 3)):
        errors = iter([(1.0 - gain) ** epoch for epoch in range(50)])
        monkeypatch.setattr("offline_train.models.fit.holdout_error", lambda *_, e=errors: torch.full((3, 1), next(e)))
        trainer = toy_trainer(SMALL.model_copy(update={"patience": 2, "steps_per_epoch": 1, "max_steps": 50}))
        seen = []
        trainer.run(lambda step, figures, seen=seen: seen.append(step))
        assert len(seen) == epochs


def test_budget_is_kept_where_it_is_no_multiple_of_an_epoch() -> None:
    trainer = toy_trainer(SMALL.model_copy(update={"max_steps": 50}))
    epochs = []
    trainer.run(lambda step, figures: epochs.append(step))
    assert epochs == [20, 40, 50]


def test_resume_is_equal_to_the_bit(tmp_path: Path) -> None:
    whole = toy_trainer(SMALL)
    whole.run(ignore)

    first = toy_trainer(SMALL)
    for _ in range(2):
        for _ in range(SMALL.steps_per_epoch):
            first.step()
        first.end_epoch()
    save_checkpoint(tmp_path / "fit.safetensors", first.state_dict())
    second = toy_trainer(SMALL, seed=7)
    second.load_state_dict(load_checkpoint(tmp_path / "fit.safetensors"))
    second.run(ignore)
    assert state_equal(whole.state_dict(), second.state_dict())


def test_two_fits_with_one_seed_are_equal_and_another_is_not() -> None:
    states = []
    for seed in (0, 0, 1):
        trainer = toy_trainer(SMALL.model_copy(update={"max_steps": 20}), seed=seed)
        trainer.run(ignore)
        states.append(trainer.state_dict()["model"])
    assert state_equal(states[0], states[1]) and not state_equal(states[0], states[2])


def test_weight_decay_goes_with_the_depth() -> None:
    # MOPO's decays for four layers and the heads; the variance's learned bounds decay not at all.
    config = EnsembleConfig(members=2, elites=1, hidden=[4, 4, 4, 4])
    decays = [group["weight_decay"] for group in toy_trainer(config).optimizer.param_groups]
    assert decays == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4, 1e-4, 0.0]
    trained = {id(p) for group in toy_trainer(config).optimizer.param_groups for p in group["params"]}
    assert len(trained) == len([*toy_trainer(config).model.parameters()])


def test_trainer_refuses_rows_of_another_size() -> None:
    trainer = toy_trainer(SMALL)
    narrow = trainer.train._replace(inputs=trainer.train.inputs[:, :3])
    wrong = EnsembleTrainer(trainer.model, narrow, trainer.holdout, SMALL, torch.Generator())
    with pytest.raises(RuntimeError, match="size"):
        wrong.step()


def test_more_elites_than_members_are_refused() -> None:
    with pytest.raises(ValueError, match="elites=3 cannot be chosen from members=2"):
        EnsembleConfig(members=2, elites=3)
