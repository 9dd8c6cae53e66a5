"""Gains of actuators: how they are drawn, what they do to commands and rollouts, and what the learner sees of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from toy import ROBOT, Toy

from adapters.errors import UserError
from offline_train.algorithms.augwm_actuators import (
    ActuatorAugWm,
    ActuatorAugWmConfig,
    delivered,
    draw_by_rank,
    draw_gains,
    draw_pushes,
    positive_value_loss,
    take_for_dead,
)
from offline_train.algorithms.rma import RmaConfig
from offline_train.algorithms.sac import SacConfig
from offline_train.replay import Batch
from sim.terminations import never


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(toy: Toy, **settings: Any) -> ActuatorAugWm:
    small: dict[str, Any] = {"rollout_starts": 200, "horizon": 2, "batch_size": 64, "retain_epochs": 2}
    config = ActuatorAugWmConfig(sac=SacConfig(hidden=[16, 16]), **small | settings)
    return ActuatorAugWm(config, toy.packed, toy.model, never, seed=0)


def test_gains_are_of_four_kinds_in_their_shares() -> None:
    gains = draw_gains(40_000, 4, ActuatorAugWmConfig(), seeded())
    ones = (gains == 1).sum(1)
    nominal, single = ones == 4, ones == 3
    shared = (gains == gains[:, :1]).all(1) & ~nominal
    assert nominal.float().mean() == pytest.approx(0.35, abs=0.01)
    assert single.float().mean() == pytest.approx(0.40, abs=0.01)
    assert shared.float().mean() == pytest.approx(0.15, abs=0.01)
    weak = gains[single].amin(1)
    assert (weak == 0).float().mean() == pytest.approx(0.6, abs=0.02)
    # What is weak but not dead is uniform from 0 to 1: its mean is a half.
    assert weak[weak > 0].mean() == pytest.approx(0.5, abs=0.02)
    several = gains[~nominal & ~single]
    assert several.min() >= 0.4 and several.max() <= 1.3
    assert several.mean() == pytest.approx(0.85, abs=0.01)
    # Each motor is the weak one as often as any other.
    torch.testing.assert_close((gains[single] < 1).float().mean(0), torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_a_motor_gives_no_more_than_the_original_one_could() -> None:
    action = torch.tensor([[0.5, -1.0, 0.9]])
    torch.testing.assert_close(delivered(action, torch.tensor([[0.0, 0.5, 1.3]])), torch.tensor([[0.0, -0.5, 1.0]]))


def test_unused_motors_are_taken_for_dead_ones_that_were_sent_anything() -> None:
    rows = 2_000
    obs = torch.cat([torch.arange(3.0).expand(rows, 3), torch.ones(rows, 2)], -1)
    action = torch.tensor([0.0, 0.7]).expand(rows, 2)
    batch = Batch(obs, action, torch.ones(rows), obs + 1.0, torch.zeros(rows))
    seen = take_for_dead(batch, 0.8, seeded())
    dead = seen.obs[:, 3] == 0
    assert dead.float().mean() == pytest.approx(0.8, abs=0.03)
    # The observation proper, the motor that was used, reward and end stay as they were.
    assert torch.equal(seen.obs[:, :3], obs[:, :3]) and torch.equal(seen.next_obs[:, :3], obs[:, :3] + 1.0)
    assert (seen.obs[:, 4] == 1).all() and (seen.action[:, 1] == 0.7).all()
    assert torch.equal(seen.reward, batch.reward) and torch.equal(seen.terminal, batch.terminal)
    # Both observations say the same of the motor, and a dead one was sent anything from -1 to 1.
    assert torch.equal(seen.next_obs[:, 3] == 0, dead)
    assert (seen.action[~dead, 0] == 0).all()
    assert seen.action[dead, 0].min() < -0.9 and seen.action[dead, 0].max() > 0.9


def test_rollouts_are_made_with_what_the_motors_deliver(toy: Toy) -> None:
    algorithm = make(toy, nominal_share=0.0, single_share=1.0, shared_share=0.0, dead_share=1.0)
    algorithm.train_epoch()
    kept = Batch.unpack(algorithm.replay.rows[: algorithm.replay.size], 4, 2)
    gains = kept.obs[:, 2:]
    assert set(gains.flatten().tolist()) == {0.0, 1.0} and (gains.sum(1) == 1).all()
    assert torch.equal(gains, kept.next_obs[:, 2:])
    # The toy moves by 0.3 times the command; along a dead motor it stands, but for the model's noise.
    moved = (kept.next_obs - kept.obs)[:, :2]
    assert moved[gains == 0].abs().mean() < 0.05 < moved[gains == 1].abs().mean()
    assert kept.action[gains == 0].abs().mean() > 0.1, "a dead motor is sent something all the same"


def test_an_untold_policy_reads_no_gains(toy: Toy) -> None:
    algorithm = make(toy, told=False)
    algorithm.train_epoch()
    assert algorithm.context_dim == 0
    assert algorithm.act_nominal(torch.zeros(3, 2)).shape == (3, 2)
    assert len(algorithm.sac.obs_mean) == 2


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not be more than 1"):
        ActuatorAugWmConfig(nominal_share=0.5, single_share=0.4, shared_share=0.2)
    with pytest.raises(ValidationError, match="pushes are above 0"):
        ActuatorAugWmConfig(pushes=((0, 0.0),))
    with pytest.raises(ValidationError, match="pushes are above 0"):
        ActuatorAugWmConfig(pushes=((-1, 0.1),))
    with pytest.raises(ValidationError, match="pushes names a term of the observation twice"):
        ActuatorAugWmConfig(pushes=((1, 0.1), (1, 0.2)))
    with pytest.raises(ValidationError, match="the estimator 'history' tells no pushes"):
        RmaConfig(pushes=((0, 0.1),))
    with pytest.raises(UserError, match="gives no context of the kind actuator_gain; choose one of actuator_gain"):
        ActuatorAugWmConfig(estimator="scale")


def test_pushes_are_drawn_for_a_share_of_the_rollouts() -> None:
    config = ActuatorAugWmConfig(pushes=((0, 0.2), (3, 1.0)), push_share=0.3)
    pushes = draw_pushes(40_000, config, seeded())
    some = (pushes != 0).all(1)
    assert ((pushes != 0).any(1) == some).all() and some.float().mean() == pytest.approx(0.3, abs=0.01)
    # Uniform on [-a, a]: no mean, a root mean square of a / sqrt(3).
    drawn = pushes[some] / torch.tensor([0.2, 1.0])
    assert drawn.abs().max() <= 1
    torch.testing.assert_close(drawn.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.square().mean(0), torch.full((2,), 1 / 3), atol=0.01, rtol=0)


def test_rollouts_are_pushed_and_the_policy_is_told_how_much(toy: Toy) -> None:
    still = {"nominal_share": 0.0, "single_share": 0.0, "shared_share": 1.0, "gain_low": 0.0, "relabel": 0.0}
    algorithm = make(toy, pushes=((1, 0.5),), push_share=1.0, **still)
    algorithm.train_epoch()
    kept = Batch.unpack(algorithm.replay.rows[: algorithm.replay.size], 5, 2)
    push, gains = kept.obs[:, 2], kept.obs[:, 3:]
    assert push.abs().max() <= 0.5 < 2 * push.abs().max()
    assert torch.equal(kept.obs[:, 2:], kept.next_obs[:, 2:])
    # The toy moves by 0.3 times the command as delivered; its second term, and it alone, by the push besides.
    moved = (kept.next_obs - kept.obs)[:, :2] - 0.3 * delivered(kept.action, gains)
    assert moved[:, 0].abs().mean() < 0.06
    assert (moved[:, 1] - push).abs().mean() < 0.06
    # Rollouts go on from where the push has led: the last 200 rows begin where the 200 before them ended.
    torch.testing.assert_close(kept.obs[200:, :2], kept.next_obs[:200, :2])


def test_a_bundle_says_what_is_pushed() -> None:
    spec = ActuatorAugWmConfig(pushes=((1, 0.5),), gain_high=1.2).context_spec(ROBOT)
    assert spec is not None
    assert (spec.dim, spec.pushed, spec.nominal) == (3, (1,), (0.0, 1.0, 1.0))
    assert (spec.low, spec.high) == ((-0.5, 0.0, 0.0), (0.5, 1.2, 1.2))


def test_an_untold_policy_is_pushed_all_the_same(toy: Toy) -> None:
    algorithm = make(toy, pushes=((0, 0.5),), push_share=1.0, told=False)
    algorithm.train_epoch()
    kept = Batch.unpack(algorithm.replay.rows[: algorithm.replay.size], 2, 2)
    assert algorithm.context_dim == 0
    moved = (kept.next_obs - kept.obs).abs().amax(0)
    # A command moves it by 0.3 at most; pushes of up to 0.5 come on top for the first term.
    assert moved[0] > 0.6 > 0.45 > moved[1]


@pytest.mark.parametrize("told", [True, False])
def test_a_push_on_what_is_not_observed_is_refused(told: bool) -> None:
    with pytest.raises(UserError, match="names term 2 of the observation, which has 2, counted from 0"):
        ActuatorAugWmConfig(pushes=((2, 0.1),), told=told).context_spec(ROBOT)


def test_what_turns_out_better_than_the_critics_said_scores(toy: Toy) -> None:
    algorithm = make(toy)
    sac = algorithm.sac
    obs, next_obs = torch.rand(2, 6, 4, generator=seeded())
    action, terminal = torch.zeros(6, 2), torch.tensor([0.0, 1.0] * 3)
    with torch.no_grad():
        value = sac.critics(sac.normalise(obs), action).amin(0)
        following = sac.critics(sac.normalise(next_obs), sac(next_obs)).amin(0)
    # Rewards that make every step better than the critics said by 2, 0 and -2.
    surprise = torch.tensor([2.0, 2.0, 0.0, 0.0, -2.0, -2.0])
    reward = surprise + value - 0.99 * (1 - terminal) * following
    score = positive_value_loss(sac, Batch(obs, action, reward, next_obs, terminal))
    torch.testing.assert_close(score.detach(), torch.tensor([2.0, 2.0, 0.0, 0.0, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_high_scores_are_drawn_more_often() -> None:
    drawn = draw_by_rank(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.1, 5.0, 0.2]), 60_000, seeded())
    # Ranks 3, 1 and 2: chances in the ratio 1 / sqrt(3) : 1 : 1 / sqrt(2), which are 0.2527, 0.4377 and 0.3095.
    shares = [float((drawn == value).float().mean()) for value in (1.0, 2.0, 3.0)]
    assert shares == pytest.approx([0.2527, 0.4377, 0.3095], abs=0.01)


def test_changes_are_drawn_by_regret_and_the_original_world_as_often_as_before(toy: Toy) -> None:
    algorithm = make(toy, nominal_share=0.3, single_share=0.6, shared_share=0.1, dead_share=0.0, regret_share=0.5)
    algorithm.train_epoch()
    assert sum(len(score) for _, score in algorithm.seen) > 200
    algorithm.seen = [(torch.full((10, 2), 0.123), torch.ones(10))]
    contexts = algorithm._rollout_context(20_000)
    assert not algorithm.seen
    assert (contexts == 1).all(1).float().mean() == pytest.approx(0.3, abs=0.02)
    assert (contexts == 0.123).all(1).float().mean() == pytest.approx(0.35, abs=0.02)


def test_nothing_is_scored_where_nothing_is_drawn_by_regret(toy: Toy) -> None:
    algorithm = make(toy)
    algorithm.train_epoch()
    assert not algorithm.seen and "seen_scores" not in algorithm.state_dict()
