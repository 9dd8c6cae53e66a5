"""What the ensemble predicts: shapes, units, members and elites."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import NOISE, Toy, toy_batch, toy_step

from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.penalties import PENALTIES, Prediction, measure
from sim.terminations import never


def untrained(members: int = 4, elites: int = 3) -> DynamicsEnsemble:
    model = DynamicsEnsemble(
        2, 2, torch.Generator().manual_seed(0), members=members, elites=elites, hidden=(8, 8)
    ).requires_grad_(False)
    model.target_mean.copy_(torch.tensor([1.0, -1.0, 5.0]))
    model.target_std.copy_(torch.tensor([2.0, 0.5, 10.0]))
    return model


def some_rows(rows: int = 6) -> tuple[Tensor, Tensor]:
    batch = toy_batch(rows, seed=3)
    return batch.obs, batch.action


def test_prediction_is_in_the_data_units() -> None:
    model = untrained()
    obs, action = some_rows()
    mean, std = model.predict(obs, action)
    normal_mean, log_variance = model(model.normalise(obs, action).expand(4, -1, -1))
    assert mean.shape == std.shape == (4, 6, 3)
    torch.testing.assert_close(mean, normal_mean * model.target_std + model.target_mean)
    torch.testing.assert_close(std, log_variance.exp().sqrt() * model.target_std)


def test_chosen_members_are_those_members() -> None:
    model = untrained()
    inputs = model.normalise(*some_rows())
    every = model(inputs.expand(4, -1, -1))
    chosen = model(inputs.expand(2, -1, -1), torch.tensor([3, 1]))
    for all_members, two in zip(every, chosen, strict=True):
        torch.testing.assert_close(two, all_members[[3, 1]])


def test_inputs_far_off_the_data_are_clipped_at_ten_deviations() -> None:
    model = untrained()
    model.input_std.copy_(torch.tensor([0.1, 1.0, 1.0, 1.0]))
    inputs = model.normalise(torch.tensor([[5.0, -30.0]]), torch.tensor([[0.5, 2.0]]))
    assert inputs.tolist() == [[10.0, -10.0, 0.5, 2.0]]


def test_log_variance_is_softly_bounded() -> None:
    model = untrained()
    model.log_variance_head.bias[0] += 100.0
    model.log_variance_head.bias[1] -= 100.0
    _, log_variance = model(torch.zeros(4, 1, 4))
    # A bound is passed by log(1 + exp(-width)) at most, nothing at a width of 10.5.
    torch.testing.assert_close(log_variance[0, 0], model.max_log_variance.expand(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(log_variance[1, 0], model.min_log_variance.expand(3), atol=1e-3, rtol=0)


def test_mean_change_is_the_elites_mixture() -> None:
    model = untrained()
    model.elite_index.copy_(torch.tensor([3, 0, 2]))
    obs, action = some_rows()
    mean, std = (v[[3, 0, 2], :, :2] for v in model.predict(obs, action))
    change, spread = model.mean_change(obs, action)
    torch.testing.assert_close(change, mean.mean(0))
    # Law of total variance.
    torch.testing.assert_close(spread, (std.square().mean(0) + mean.var(0, unbiased=False)).sqrt())


def test_a_step_draws_from_the_elites() -> None:
    model = untrained()
    model.elite_index.copy_(torch.tensor([1, 1, 1]))
    obs, action = (v[:1].expand(20_000, -1) for v in some_rows())
    mean, std = model.predict(obs[:1], action[:1])
    step = model.step(obs, action, torch.Generator().manual_seed(0), penalty="max_aleatoric", terminated=never)
    drawn = torch.cat([step.next_obs - obs, step.reward[:, None]], -1)
    # 20,000 draws: standard error std / 141; five of them.
    assert ((drawn.mean(0) - mean[1, 0]).abs() < 5 * std[1, 0] / 141).all()
    torch.testing.assert_close(drawn.std(0), std[1, 0], rtol=0.03, atol=0)
    assert (step.terminal == 0).all()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_step_has_the_penalty_of_all_members_and_of_what_was_drawn(penalty: str) -> None:
    model = untrained()
    model.elite_index.copy_(torch.tensor([2, 0, 3]))
    obs, action = some_rows(50)
    step = model.step(obs, action, torch.Generator().manual_seed(5), penalty=penalty, terminated=never)
    # The same draws once more: first the elite of each row, then its noise, and after them what a penalty samples.
    generator = torch.Generator().manual_seed(5)
    member = model.elite_index[torch.randint(3, (50,), generator=generator)]
    mean, std = model.predict(obs, action)
    noise = torch.randn(50, 3, generator=generator)
    drawn = mean[member, torch.arange(50)] + std[member, torch.arange(50)] * noise
    torch.testing.assert_close(step.next_obs, obs + drawn[:, :2])
    torch.testing.assert_close(step.reward, drawn[:, 2])
    torch.testing.assert_close(step.penalty, measure(penalty, Prediction(mean, std, member, drawn), generator))


def test_without_a_penalty_a_step_is_the_same_and_the_elites_alone_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained()
    model.elite_index.copy_(torch.tensor([2, 0, 3]))
    obs, action = some_rows(50)
    with_one = model.step(obs, action, torch.Generator().manual_seed(5), penalty="loo_kl", terminated=never)
    asked: list[int] = []
    forward = DynamicsEnsemble.forward

    def counted(self: DynamicsEnsemble, inputs: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        asked.append(len(inputs))
        return forward(self, inputs, chosen)

    monkeypatch.setattr(DynamicsEnsemble, "forward", counted)
    without = model.step(obs, action, torch.Generator().manual_seed(5), penalty=None, terminated=never)
    assert asked == [3]
    torch.testing.assert_close(without.next_obs, with_one.next_obs)
    torch.testing.assert_close(without.reward, with_one.reward)
    assert (without.penalty == 0).all() and (with_one.penalty > 0).all()


def test_terminal_is_the_rule_on_the_next_observation() -> None:
    model = untrained()
    obs, action = some_rows(200)
    step = model.step(
        obs,
        action,
        torch.Generator().manual_seed(0),
        penalty="max_aleatoric",
        terminated=lambda o: o[:, 0] > 1.0,
    )
    assert torch.equal(step.terminal, (step.next_obs[:, 0] > 1.0).float())
    assert 0 < float(step.terminal.sum()) < 200


def test_fitted_ensemble_recovers_the_linear_gaussian_system(toy: Toy) -> None:
    # The toy is x' = x + 0.3 a + 0.02 N(0, 1): the mean to a third of the noise, the noise scale to 20 %.
    batch = toy_batch(500, seed=9)
    change, std = toy.model.mean_change(batch.obs, batch.action)
    expected = toy_step(batch.obs, batch.action)[0] - batch.obs
    assert float((change - expected).square().mean().sqrt()) < NOISE / 2
    assert float(std.mean()) == pytest.approx(NOISE, rel=0.25)


def test_wrong_shapes_are_refused() -> None:
    obs, action = some_rows()
    with pytest.raises(RuntimeError, match="size"):
        untrained().predict(obs[:, :1], action)
