"""The losses of soft actor-critic by hand, and one step of the learner."""

from __future__ import annotations

import copy

import pytest
import torch

from offline_train.algorithms.sac import Sac, SacConfig, actor_loss, critic_loss, critic_target, temperature_loss
from offline_train.replay import Batch


def test_critic_target() -> None:
    # Row 0: 1 + 0.9 (min(2, 3) - 0.5 (-1)) = 1 + 0.9 x 2.5 = 3.25; row 1 is terminal: its reward, 2.
    target = critic_target(
        reward=torch.tensor([1.0, 2.0]),
        terminal=torch.tensor([0.0, 1.0]),
        next_values=torch.tensor([[2.0, 7.0], [3.0, 5.0]]),
        next_log_prob=torch.tensor([-1.0, 4.0]),
        alpha=torch.tensor(0.5),
        discount=0.9,
    )
    torch.testing.assert_close(target, torch.tensor([3.25, 2.0]))


def test_critic_loss() -> None:
    # Critic 0: mean(1, 4) = 2.5; critic 1: mean(0, 9) = 4.5; summed 7.
    values, target = torch.tensor([[1.0, 4.0], [2.0, 5.0]]), torch.tensor([2.0, 2.0])
    assert float(critic_loss(values, target)) == pytest.approx(7.0)


def test_actor_loss() -> None:
    # Row 0: 0.5 x 2 - min(1, 3) = 0; row 1: 0.5 x (-4) - min(5, 4) = -6; mean -3.
    values, log_prob = torch.tensor([[1.0, 5.0], [3.0, 4.0]]), torch.tensor([2.0, -4.0])
    assert float(actor_loss(values, log_prob, torch.tensor(0.5))) == pytest.approx(-3.0)


def test_temperature_loss() -> None:
    # -0.5 (mean(1, 3) - 3) = 0.5; the entropy -2 lies above the target -3, so the slope -(2 - 3) = 1 lowers alpha.
    log_alpha = torch.tensor(0.5, requires_grad=True)
    loss = temperature_loss(log_alpha, torch.tensor([1.0, 3.0]), target_entropy=-3.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5)
    assert log_alpha.grad is not None and float(log_alpha.grad) == pytest.approx(1.0)


def test_target_entropy_is_minus_the_actions_size_where_none_is_given() -> None:
    assert make_sac(target_entropy=None).target_entropy == -2.0
    assert make_sac(target_entropy=-1.5).target_entropy == -1.5


def test_temperature_starts_where_it_is_told() -> None:
    figures = make_sac(initial_temperature=0.1).update(make_batch())
    assert float(figures["alpha"]) == pytest.approx(0.1)
    assert float(make_sac().update(make_batch())["alpha"]) == 1.0


def make_sac(**settings: float | None) -> Sac:
    config = SacConfig(hidden=[16, 16], **settings)  # type: ignore[arg-type]
    return Sac(torch.zeros(3), torch.ones(3), 2, config, torch.Generator().manual_seed(0))


def make_batch(rows: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    obs, next_obs = torch.randn(2, rows, 3, generator=generator)
    action = 2 * torch.rand(rows, 2, generator=generator) - 1
    return Batch(obs, action, torch.randn(rows, generator=generator), next_obs, torch.zeros(rows))


def test_observations_are_standardised_inside() -> None:
    mean, std = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 2.0, 4.0])
    shifted = Sac(mean, std, 2, SacConfig(hidden=[16, 16]), torch.Generator().manual_seed(0))
    plain = make_sac()
    obs = make_batch().obs
    torch.testing.assert_close(shifted(mean + std * obs), plain(obs))
    shifted.generator.manual_seed(3)
    plain.generator.manual_seed(3)
    torch.testing.assert_close(shifted.explore(mean + std * obs), plain.explore(obs))


def test_targets_move_by_their_rate() -> None:
    sac = make_sac(target_rate=0.25)
    before = [p.clone() for p in sac.target_critics.parameters()]
    sac.update(make_batch())
    for old, target, now in zip(before, sac.target_critics.parameters(), sac.critics.parameters(), strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * now.detach())


def test_averaged_actor_is_a_plain_average_first_and_a_moving_one_later() -> None:
    # Rates 1/1, 1/2 and then 0.4, as 1/3 is less: after three updates 0.6 (w1 + w2) / 2 + 0.4 w3.
    sac = make_sac(average_rate=0.4)
    seen = []
    for _ in range(3):
        sac.update(make_batch())
        seen.append([p.detach().clone() for p in sac.actor.parameters()])
    for average, first, second, third in zip(sac.average_actor.parameters(), *seen, strict=True):
        torch.testing.assert_close(average, 0.3 * first + 0.3 * second + 0.4 * third)


def test_averaged_actor_acts_and_the_learned_one_explores() -> None:
    sac, obs = make_sac(), make_batch().obs
    before = sac(obs), sac.explore(obs)
    with torch.no_grad():
        for parameter in sac.actor.parameters():
            parameter.zero_()
    torch.testing.assert_close(sac(obs), before[0])
    # A zero actor draws from N(0, 1) before squashing, whatever it sees.
    sac.generator.manual_seed(5)
    noise = torch.randn(len(obs), 2, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sac.explore(obs), torch.tanh(noise))


def test_step_equals_three_separate_adams() -> None:
    # The plain way: each loss differentiated for its own parameters alone, each with its own unfused Adam.
    sac = make_sac()
    plain = copy.deepcopy(sac)
    plain.generator = torch.Generator().manual_seed(9)
    sac.generator.manual_seed(9)
    batch = make_batch()
    groups = [[*plain.critics.parameters()], [*plain.actor.parameters()], [plain.log_alpha]]
    adams = [torch.optim.Adam(group, lr=sac.config.learning_rate) for group in groups]
    for _ in range(3):
        sac.update(batch)
        alpha = plain.log_alpha.detach().exp()
        with torch.no_grad():
            following = plain.actor.sample(batch.next_obs, plain.generator)
            next_values = plain.target_critics(batch.next_obs, following.action)
            target = critic_target(batch.reward, batch.terminal, next_values, following.log_prob, alpha, 0.99)
        proposal = plain.actor.sample(batch.obs, plain.generator)
        losses = [
            critic_loss(plain.critics(batch.obs, batch.action), target),
            actor_loss(plain.critics(batch.obs, proposal.action), proposal.log_prob, alpha),
            temperature_loss(plain.log_alpha, proposal.log_prob.detach(), sac.config.target_entropy),
        ]
        gradients = [torch.autograd.grad(loss, group) for loss, group in zip(losses, groups, strict=True)]
        for adam, group, gradient in zip(adams, groups, gradients, strict=True):
            for parameter, grad in zip(group, gradient, strict=True):
                parameter.grad = grad
            adam.step()
        plain._move_targets()
        plain._move_average()
    for ours, theirs in zip(sac.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)


def test_figures_stay_tensors_without_gradient() -> None:
    figures = make_sac().update(make_batch())
    assert {"critic_loss", "actor_loss", "target_value", "alpha", "entropy"} <= figures.keys()
    for value in figures.values():
        assert value.shape == () and not value.requires_grad and torch.isfinite(value)


@pytest.mark.parametrize("bad", [{"discount": 1.0}, {"learning_rate": 0.0}, {"gamma": 0.9}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SacConfig(**bad)  # type: ignore[arg-type]
