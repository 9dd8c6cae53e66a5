"""MABE: its divergence by hand, the dual variable's direction, and the policy's tie to its prior."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from toy import Toy, state_equal, toy_batch

from offline_train.algorithms.augwm_mabe import MabeAugWm, MabeAugWmConfig
from offline_train.algorithms.awbc import AwbcConfig
from offline_train.algorithms.mabe import Mabe, MabeConfig, MabeSac, gaussian_kl
from offline_train.algorithms.sac import SacConfig
from offline_train.networks import Actor, squashed_density
from sim.terminations import never


def make(target_divergence: float = 2.0, **sac: Any) -> MabeSac:
    generator = torch.Generator().manual_seed(0)
    prior = Actor(2, 2, [16, 16], generator)
    settings = SacConfig(**{"hidden": [16, 16]} | sac)
    return MabeSac(
        torch.zeros(2),
        torch.ones(2),
        2,
        settings,
        generator,
        prior=prior,
        prior_dim=2,
        target_divergence=target_divergence,
    )


def make_algorithm(toy: Toy, of: type[Mabe] = Mabe, config: type[MabeConfig] = MabeConfig, **settings: Any) -> Mabe:
    small: dict[str, Any] = {
        "updates": 40,
        "steps_per_epoch": 10,
        "rollout_starts": 50,
        "prior": AwbcConfig(updates=25, steps_per_epoch=10, hidden=[16, 16]),
        "sac": SacConfig(hidden=[16, 16]),
    }
    return of(config(**small | settings), toy.packed, toy.model, never, 0)


def test_gaussian_kl() -> None:
    # Dimension 0: N(1, 1) against N(0, 2): log 2 + (1 + 1) / 8 - 1/2; dimension 1 is the same Gaussian: 0.
    mean, log_std = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, -1.0]])
    prior_mean, prior_log_std = torch.tensor([[0.0, 3.0]]), torch.tensor([[math.log(2.0), -1.0]])
    expected = math.log(2.0) + 0.25 - 0.5
    assert float(gaussian_kl(mean, log_std, prior_mean, prior_log_std)) == pytest.approx(expected)


def test_divergence_is_that_of_the_squashed_policies() -> None:
    # By 200,000 draws of the policy: the mean of log pi(a) - log p(a), to five standard errors.
    learner, rows = make(), 200_000
    obs = torch.tensor([[0.4, -0.7]])
    policy, prior = learner.actor.distribution(obs), learner.prior.distribution(obs)
    action = learner.actor.sample(obs.expand(rows, -1), learner.generator).action
    ratio = squashed_density(action, *policy) - squashed_density(action, *prior)
    difference = (gaussian_kl(*policy, *prior) - ratio.mean()).abs()
    assert (difference < 5 * ratio.std() / math.sqrt(rows)).all()


@pytest.mark.parametrize(("target", "grows"), [(1e-3, True), (100.0, False)])
def test_beta_grows_where_the_policy_is_further_from_the_prior_than_it_may_be(target: float, grows: bool) -> None:
    learner, batch = make(target_divergence=target), toy_batch(64, seed=1)
    with torch.no_grad():
        learner.actor.layers[-1].bias[:2] += 1.0
    before = float(learner.log_alpha.detach())
    figures = learner.update(batch)
    assert (float(figures["divergence"]) > target) == grows == (float(learner.log_alpha.detach()) > before)


def test_critics_learn_the_value_less_the_divergence() -> None:
    learner, batch = make(), toy_batch(64, seed=1)
    state = learner.generator.get_state()
    with torch.no_grad():
        target = learner._target(batch, batch.next_obs, torch.tensor(0.5))
        learner.generator.set_state(state)
        action = learner.actor.sample(batch.next_obs, learner.generator).action
        value = learner.target_critics(batch.next_obs, action).amin(0)
        policy, prior = learner.actor.distribution(batch.next_obs), learner.prior.distribution(batch.next_obs)
        expected = batch.reward + 0.99 * (value - 0.5 * gaussian_kl(*policy, *prior))
    torch.testing.assert_close(target, expected)


def test_a_large_beta_makes_the_policy_the_prior() -> None:
    learner, batch = make(initial_temperature=1e3, learning_rate=3e-3), toy_batch(256, seed=1)
    before = learner.update(batch)["divergence"]
    for _ in range(300):
        after = learner.update(batch)["divergence"]
    assert float(after) < 0.05 * float(before)


def test_prior_is_learned_first_and_then_stays(toy: Toy) -> None:
    algorithm = make_algorithm(toy)
    untrained = algorithm.sac.prior.layers[0].weight.clone()
    figures = [algorithm.train_epoch() for _ in range(3)]
    # 10, 10 and the last 5 of the 25 updates of the prior; no rollout yet, and no step of the policy.
    assert algorithm.updates == 25 and algorithm.replay.size == 0
    assert all("prior_actor_loss" in epoch and "rollout_reward" not in epoch for epoch in figures)
    assert state_equal(algorithm.sac.prior.state_dict(), algorithm.prior.actor.state_dict())
    assert not torch.equal(algorithm.sac.prior.layers[0].weight, untrained)
    learned = {name: value.clone() for name, value in algorithm.sac.prior.state_dict().items()}
    assert "divergence" in algorithm.train_epoch()
    assert algorithm.updates == 35 and algorithm.replay.size > 0
    assert state_equal(algorithm.sac.prior.state_dict(), learned)


def test_a_policy_goes_on_from_mabe_with_its_prior_and_a_context_of_no_effect(toy: Toy) -> None:
    earlier = make_algorithm(toy)
    while not earlier.finished:
        earlier.train_epoch()
    algorithm = make_algorithm(toy, MabeAugWm, MabeAugWmConfig)
    algorithm.start_from(earlier.policy.state_dict())
    assert algorithm.updates == 25  # the prior's are done
    assert state_equal(algorithm.sac.prior.state_dict(), earlier.sac.prior.state_dict())
    obs = toy_batch(20, seed=3).obs
    torch.testing.assert_close(algorithm.act(obs, torch.rand(20, 2)), earlier.act(obs))


def test_the_prior_reads_no_context(toy: Toy) -> None:
    algorithm = make_algorithm(toy, MabeAugWm, MabeAugWmConfig)
    while not algorithm.finished:
        algorithm.train_epoch()
    learner, obs = algorithm.sac, toy_batch(20, seed=3).obs
    gains = torch.tensor([[0.0, 1.0]]).expand(20, 2)
    told = learner.normalise(torch.cat([obs, gains], -1))
    prior = learner.prior.distribution(algorithm.prior.normalise(obs))
    expected = gaussian_kl(*learner.actor.distribution(told), *prior)
    torch.testing.assert_close(learner._propose(told).log_prob, expected)


def test_a_prior_that_leaves_no_update_to_the_policy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prior\.updates are part of the updates and must be fewer"):
        MabeConfig(updates=20_000)
