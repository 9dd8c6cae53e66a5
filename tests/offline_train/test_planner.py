"""A plan around the policy: what candidates are worth, how they are weighed, and the graph that a bundle carries."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import Toy

from adapters.datasets import save_npz
from deploy.bundle import Bundle, PlanSpec
from offline_train.algorithms.augwm_actuators import delivered
from offline_train.algorithms.sac import Sac, SacConfig
from offline_train.bench_cases import random_dataset
from offline_train.models.rollout import Change
from offline_train.planner import LEAST_STD, Planner, directions, weights
from sim.terminations import never


class Still(nn.Module):
    """A policy that always does the same, whose critics value a place by ten times its coordinates' sum."""

    config = SacConfig(discount=0.9)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros(len(inputs), 2)

    def normalise(self, inputs: Tensor) -> Tensor:
        return inputs

    def critics(self, inputs: Tensor, action: Tensor) -> Tensor:
        return torch.stack([10.0 * inputs[:, :2].sum(-1), 1e3 + inputs[:, 0]])


class Pushed(nn.Module):
    """A world that moves by the action and pays the first coordinate of where it was."""

    obs_dim, act_dim = 2, 2

    def mean_step(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return action, obs[:, 0]


def plan(horizon: int = 2, **kwargs: Any) -> Planner:
    return Planner(Still(), Pushed(), PlanSpec(horizon=horizon), kwargs.pop("terminated", never), **kwargs)  # type: ignore[arg-type]


def test_an_action_is_worth_its_rewards_and_what_the_critics_say_of_where_it_leads() -> None:
    # At (1, 2) the action (3, 4) leads to (4, 6), where the policy stays: rewards 1 and 4, then the smaller value,
    # 10 (4 + 6) = 100 against 1,004: 1 + 0.9 x 4 + 0.81 x 100 = 85.6.
    worth = plan().imagined_return(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(worth, torch.tensor([85.6]))


def test_a_robot_that_falls_earns_nothing_more() -> None:
    # The first step ends it where the first coordinate exceeds 3.5: its reward 1 is all that counts.
    fallen = plan(terminated=lambda obs: obs[..., 0] > 3.5)
    worth = fallen.imagined_return(torch.tensor([[1.0, 2.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0]]).expand(2, 2))
    # The other goes from (0, 2) to (3, 6): 0 + 0.9 x 3 + 0.81 x 90 = 75.6.
    torch.testing.assert_close(worth, torch.tensor([1.0, 75.6]))


def test_the_context_changes_the_world() -> None:
    halved = Change(command=lambda action, gains: gains * action, motion=lambda obs, following, _: following + 1.0)
    inputs = torch.tensor([[1.0, 2.0, 0.5, 0.0]])
    # With gains (0.5, 0) and a drift of 1 the action (3, 4) leads to (3.5, 3), and the policy's own to (4.5, 4):
    # 1 + 0.9 x 3.5 + 0.81 x 85 = 73.
    worth = plan(change=halved).imagined_return(inputs, torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(worth, torch.tensor([73.0]))


def test_weights_by_hand() -> None:
    # Returns 0, 1, 2 have mean 1 and deviation sqrt(2/3): scores -1.2247, 0 and 1.2247, of which exp is 0.2938, 1 and
    # 3.4031, in all 4.6969.
    torch.testing.assert_close(
        weights(torch.tensor([[0.0, 1.0, 2.0]]), 1.0), torch.tensor([[0.06255, 0.21291, 0.72454]]), atol=2e-5, rtol=0.0
    )


def test_rounding_does_not_choose() -> None:
    # Values of 300 in float32 are 3e-5 apart; against the least deviation of 0.01 that is 0.003 at most.
    returns = torch.full((1, 5), 300.0) + torch.tensor([[0.0, 3e-5, 0.0, 0.0, -3e-5]])
    torch.testing.assert_close(weights(returns, 2.0), torch.full((1, 5), 0.2), atol=3 * 2e-5 / LEAST_STD, rtol=0.0)


@given(st.integers(1, 9))
def test_directions_lie_on_either_side_in_every_direction(act_dim: int) -> None:
    ways = directions(act_dim)
    assert ways.shape == (1 + 2 * act_dim, act_dim) and not ways[0].any()
    frame, opposite = ways[1:].split(act_dim)
    torch.testing.assert_close(opposite, -frame)
    # Each is as long as a vector of ones, so its square is the number of actuators.
    torch.testing.assert_close(frame @ frame.T, act_dim * torch.eye(act_dim), atol=1e-5, rtol=0.0)


def test_the_plan_moves_towards_what_pays(toy: Toy) -> None:
    # The toy robot pays 1 - |x|_1, the untrained policy knows nothing of it, and critics say the same everywhere.
    sac = Sac(torch.zeros(2), torch.ones(2), 2, SacConfig(hidden=[8]), torch.Generator().manual_seed(0))
    for parameter in sac.critics.parameters():
        torch.nn.init.zeros_(parameter)
    obs = torch.tensor([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]])
    with torch.no_grad():
        planned = Planner(sac, toy.model, PlanSpec(horizon=3, spread=0.3), never)(obs)
        step = planned - sac(obs)
        # Never further than a candidate, whose length is 0.3 sqrt(2); and downhill in |x|_1.
        assert (step.norm(dim=-1) < 0.3 * math.sqrt(2)).all()
        assert ((step * obs.sign()).sum(-1) < -0.05).all()


def test_where_nothing_can_be_moved_the_policy_has_its_way() -> None:
    # With every motor dead all candidates are worth the same, and opposite ones cancel out.
    inputs = torch.cat([torch.rand(5, 2), torch.zeros(5, 2)], -1)
    torch.testing.assert_close(plan(change=Change(command=delivered))(inputs), torch.zeros(5, 2))
    assert (plan(change=Change(command=delivered))(torch.ones(1, 4)) > 0.05).all()


SMALL = (
    "evaluation_episodes=0",
    "ensemble.members=2",
    "ensemble.elites=2",
    "ensemble.hidden=[8]",
    "ensemble.max_steps=1",
    "algorithm.updates=1",
    "algorithm.rollout_starts=10",
    "algorithm.sac.hidden=[8]",
)


@pytest.mark.parametrize("algorithm", ["mopo", "augwm", "augwm-actuators"])
def test_a_bundle_carries_the_plan(command_line: Callable[..., Any], tmp_path: Path, algorithm: str) -> None:
    log, run = tmp_path / "log.npz", tmp_path / "run"
    save_npz(random_dataset(), log)
    source = ("dataset=file", f"dataset.path={log}", f"output={run}", f"algorithm={algorithm}")
    trained = command_line("train", *source, *SMALL)
    assert trained.code == 0, trained
    for horizon in (0, 2):
        done = command_line(
            "export", f"run={run}", f"output={tmp_path / f'{horizon}.bundle'}", f"plan.horizon={horizon}"
        )
        assert done.code == 0, done
    alone, planned = (Bundle.load(tmp_path / f"{horizon}.bundle") for horizon in (0, 2))
    assert alone.manifest.plan is None and planned.manifest.plan == PlanSpec(horizon=2)
    obs = np.random.default_rng(0).standard_normal((20, alone.manifest.obs_dim)).astype(np.float32)
    context = None if alone.manifest.context is None else np.tile(alone.manifest.context.nominal, (20, 1))
    way = planned.act(obs, context) - alone.act(obs, context)
    # Commands are in [-1, 1], six of them: a tenth from the policy's on average, and nowhere the policy's own.
    assert (np.linalg.norm(way, axis=-1) < 0.1 * math.sqrt(6) + 1e-5).all() and (np.abs(way).max(-1) > 1e-4).all()
    rows = [planned.act(obs[i : i + 1], None if context is None else context[:1])[0] for i in range(20)]
    np.testing.assert_allclose(rows, planned.act(obs, context), atol=1e-3)


def test_what_cannot_plan_is_refused(command_line: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    online = (
        "algorithm=sac",
        "dataset=online",
        "dataset.env=hopper",
        "algorithm.updates=1",
        "algorithm.sac.hidden=[8]",
    )
    trained = command_line("train", *online, "algorithm.random_steps=20", "evaluation_episodes=0", f"output={run}")
    assert trained.code == 0, trained
    for settings, sentence in (
        (["plan.horizon=3"], "a run of algorithm=sac has none"),
        (["plan.horizon=21"], "horizon=21"),
        (["plan=3"], "plan=3 is not possible"),
        (["plan.horizon=3", "plan.spread=0"], "spread=0"),
    ):
        done = command_line("export", f"run={run}", f"output={tmp_path / 'out.bundle'}", *settings)
        assert done.code == 2 and done.err.count("\n") == 1 and sentence in done.err, done
        assert not (tmp_path / "out.bundle").exists()
