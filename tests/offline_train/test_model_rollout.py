"""Rollouts in the world model."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from toy import PUSH, Toy

from offline_train.algorithms.mopo import penalised
from offline_train.models import rollout as rollout_module
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule
from offline_train.models.rollout import HORIZONS, Change, horizon_error, rollout
from offline_train.replay import Batch
from sim.terminations import never


def walk(obs: Tensor, scaling: Tensor | None = None) -> Tensor:
    """A deterministic policy towards the origin, whatever the scaling."""
    return -obs.clamp(-1.0, 1.0)


def roll(
    model: DynamicsEnsemble,
    start: Tensor,
    *,
    horizon: int = 3,
    weight: float = 0.0,
    rule: TerminationRule = never,
    scaling: Tensor | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    steps = rollout(
        model,
        start,
        walk,
        torch.Generator().manual_seed(seed),
        horizon=horizon,
        penalty="max_aleatoric",
        pessimism=functools.partial(penalised, weight=weight),
        terminated=rule,
        context=scaling,
        change=Change(motion=torch.lerp),
    )
    return (batch for batch, _ in steps)


def starts(rows: int) -> Tensor:
    return 2.0 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(1)) - 1.0


def test_steps_follow_one_another(toy: Toy) -> None:
    steps = [*roll(toy.model, starts(10))]
    assert len(steps) == 3
    torch.testing.assert_close(steps[0].obs, starts(10))
    for before, after in itertools.pairwise(steps):
        assert torch.equal(before.next_obs, after.obs)
        assert torch.equal(before.action, walk(before.obs))


def test_a_rule_that_always_fires_gives_one_step(toy: Toy) -> None:
    steps = [*roll(toy.model, starts(10), horizon=5, rule=lambda obs: obs[:, 0] < torch.inf)]
    assert len(steps) == 1
    assert (steps[0].terminal == 1).all()


def test_only_rollouts_that_go_on_are_continued(toy: Toy) -> None:
    steps = [*roll(toy.model, starts(200), horizon=4, rule=lambda obs: obs[:, 0] > 0.3)]
    alive = 200
    for step in steps:
        assert len(step.obs) == alive
        assert (step.obs[:, 0] <= 0.3).all() or step is steps[0]
        alive = int((step.terminal == 0).sum())
    assert 0 < alive < 200


def test_penalty_lowers_the_reward_by_its_weight(toy: Toy) -> None:
    plain, penalised = (next(roll(toy.model, starts(10), weight=w)) for w in (0.0, 2.0))
    std = toy.model.predict(plain.obs, plain.action)[1]
    expected = plain.reward - 2.0 * torch.linalg.vector_norm(std, dim=-1).amax(0)
    torch.testing.assert_close(penalised.reward, expected)


def test_starts_are_rolled_out_in_chunks(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_module, "CHUNK", 4)
    steps = [*roll(toy.model, starts(10), horizon=2)]
    assert [len(step.obs) for step in steps] == [4, 4, 4, 4, 2, 2]
    torch.testing.assert_close(torch.cat([step.obs for step in steps[::2]]), starts(10))


def test_chunks_draw_from_the_same_distribution_as_one_batch(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    # 4,000 rollouts of two steps from one place: the mean of the second next state to five standard errors.
    start = torch.tensor([[0.5, -0.5]]).expand(4_000, 2)
    ends = []
    for chunk in (4_000, 100):
        monkeypatch.setattr(rollout_module, "CHUNK", chunk)
        ends.append(torch.cat([s.next_obs for s in [*roll(toy.model, start, horizon=2, seed=chunk)][1::2]]))
    error = ends[0].std(0) * (2 / 4_000) ** 0.5
    assert ((ends[0].mean(0) - ends[1].mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(ends[0].std(0), ends[1].std(0), rtol=0.08, atol=0)


def test_chunks_are_one_batch_where_the_model_is_deterministic(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without noise and with one elite a rollout is a function of its start, whatever the chunk.
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(*shape))
    model = copy.deepcopy(toy.model)
    model.elite_index = model.elite_index[:1]
    ends = []
    for chunk in (64, 7):
        monkeypatch.setattr(rollout_module, "CHUNK", chunk)
        steps = [*roll(model, starts(64), horizon=3)]
        ends.append(torch.cat([step.next_obs for step in steps[2::3]]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)


def test_scaled_rollouts_visit_scaled_states_and_give_the_model_s_own(toy: Toy) -> None:
    z = torch.tensor([0.5, 2.0]).expand(10, 2)
    steps = [*roll(toy.model, starts(10), scaling=z)]
    for before, after in itertools.pairwise(steps):
        torch.testing.assert_close(after.obs, before.obs + z * (before.next_obs - before.obs))
    plain = next(roll(toy.model, starts(10)))
    assert torch.equal(steps[0].next_obs, plain.next_obs) and torch.equal(steps[0].reward, plain.reward)


def test_each_row_keeps_its_own_scaling_where_others_end_and_across_chunks(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_module, "CHUNK", 50)
    z = 0.5 + torch.rand(100, 2, generator=torch.Generator().manual_seed(3))
    seen: list[tuple[Tensor, Tensor]] = []

    def policy(obs: Tensor, scaling: Tensor | None) -> Tensor:
        assert scaling is not None
        seen.append((obs, scaling))
        return walk(obs)

    def outside(obs: Tensor) -> Tensor:
        return obs[:, 0] > 0.3

    generator = torch.Generator().manual_seed(0)
    steps = [
        *rollout(
            toy.model,
            starts(100),
            policy,
            generator,
            horizon=2,
            penalty="max_aleatoric",
            pessimism=functools.partial(penalised, weight=0.0),
            terminated=outside,
            context=z,
            change=Change(motion=torch.lerp),
        )
    ]
    for chunk, rows in ((0, z[:50]), (2, z[50:])):
        assert torch.equal(seen[chunk][1], rows)
        first, contexts = steps[chunk]
        assert torch.equal(contexts, rows)
        visited = first.obs + rows * (first.next_obs - first.obs)
        # A row goes on where neither the model's next state nor the scaled one ends the episode.
        alive = ~outside(first.next_obs) & ~outside(visited)
        assert 0 < int(alive.sum()) < 50
        assert torch.equal(seen[chunk + 1][1], rows[alive])
        torch.testing.assert_close(seen[chunk + 1][0], visited[alive])


def test_horizon_error_of_the_true_model_is_small_and_of_a_wrong_one_grows(toy: Toy) -> None:
    # Windows of the noiseless toy with small random actions, so that it stays where the model was fitted.
    generator = torch.Generator().manual_seed(2)
    longest = max(HORIZONS)
    actions = 0.2 * torch.randn(20, longest, 2, generator=generator).clamp(-2, 2)
    actions[:, 1::2] = -actions[:, ::2]
    moves = torch.cat([torch.zeros(20, 1, 2), PUSH * actions.cumsum(1)], 1)
    obs = 0.3 * torch.randn(20, 1, 2, generator=generator) + moves
    good = horizon_error(toy.model, obs, actions)
    assert tuple(good) == HORIZONS
    assert good[1] < 0.02 and good[50] < 0.5
    # Actions that the log does not hold: an error of PUSH x 1 a step in both dimensions, less its sign in |x'| - x.
    wrong = horizon_error(toy.model, obs, actions + 0.5)
    std = float(toy.model.input_std[:2].mean())
    assert wrong[1] == pytest.approx(0.5 * PUSH / std, rel=0.1)
    assert wrong[5] > 4 * wrong[1]
