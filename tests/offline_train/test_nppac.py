"""N-PPAC and what it is compared with: losses by hand, what the replay holds, resuming, and a run from end to end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sac_online import point
from torch import Tensor
from toy import state_equal

from adapters.datasets import Metadata, TransitionDataset, save_npz
from adapters.files import read_jsonl
from deploy.bundle import Bundle
from deploy.controller import Controller, State
from offline_train.algorithms.awac import AwacConfig
from offline_train.algorithms.awac_online import OnlineAwac, OnlineAwacConfig
from offline_train.algorithms.demonstrated import Demonstrated
from offline_train.algorithms.nppac import (
    Nppac,
    NppacConfig,
    PriorActorCritic,
    PriorTold,
    UnsquashedActor,
    gaussian_divergence,
    sampled_divergence,
)
from offline_train.algorithms.sac import SacConfig
from offline_train.algorithms.sac_bc import SacBc, SacBcConfig, cloning_error, cloning_likelihood
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.priors.base import Moments, Prior
from offline_train.replay import Batch
from sim.gymnasium_tasks import OpenRobots, OpenTask, find_task
from sim.online_robots import OnlineRobots, PlantRobots

SMALL: dict[str, Any] = {
    "updates": 20,
    "steps_per_epoch": 10,
    "batch_size": 16,
    "random_steps": 20,
    "robots": 2,
    "pretrain_epochs": 2,
    "pretrain_batch": 8,
}
NAMES = ("nppac", "brac-online", "sac-bc", "dapg", "awac-online")
every = pytest.mark.parametrize("name", NAMES)


class Linear(Prior):
    """A prior that can be told by hand: mean -x / 2, deviation 0.1 and growing with |x|."""

    obs_dim, act_dim = 2, 1

    def moments(self, obs: Tensor) -> Moments:
        mean = -0.5 * obs[:, :1]
        return Moments(mean, 0.1 * mean.square(), torch.full_like(mean, 0.01))


def demonstrations(rows: int = 40) -> Batch:
    """A point that is pushed back to the origin."""
    obs = 2.0 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(0)) - 1.0
    action = -0.5 * obs[:, :1]
    return Batch(obs, action, -obs[:, 0].abs(), 0.9 * obs, torch.zeros(rows))


def make(name: str, robots: OnlineRobots | None = None, seed: int = 0, **settings: Any) -> Demonstrated:
    """An algorithm on the point, small."""
    robots = robots or PlantRobots(point(), 2, seed)
    small = {"learning_rate": 3e-4} | SMALL | settings
    if name in ("nppac", "brac-online"):
        config = NppacConfig(name=name, **{"hidden": [8], "actor_hidden": [8]} | small)
        return Nppac(config, robots, Linear(), demonstrations(), seed)
    rate = small.pop("learning_rate")
    if name == "awac-online":
        awac = AwacConfig(hidden=[8], actor_hidden=[8], learning_rate=rate)
        return OnlineAwac(OnlineAwacConfig(awac=awac, **small), robots, demonstrations(), seed)
    sac = SacConfig(hidden=[8], target_entropy=None, average_rate=1.0, learning_rate=rate)
    return SacBc(SacBcConfig(name=name, sac=sac, **small), robots, demonstrations(), seed)


def told(mean: float, scale: float) -> PriorTold:
    return PriorTold(torch.tensor([[mean]]), torch.tensor([[scale]]))


def test_sampled_divergence_by_hand() -> None:
    # log pi = -1; log N(0.5; 0, 0.5^2) = -0.5 - log 0.5 - 0.5 log 2 pi = -0.7258; the difference is -0.2742.
    found = sampled_divergence(torch.tensor([-1.0]), torch.tensor([[0.5]]), told(0.0, 0.5))
    assert float(found) == pytest.approx(-1.0 + 0.72579, abs=1e-4)


def test_gaussian_divergence_by_hand() -> None:
    # log(2 / 1) + (1 + (3 - 1)^2) / (2 x 4) - 1/2 = 0.6931 + 0.625 - 0.5.
    found = gaussian_divergence(torch.tensor([[3.0]]), torch.tensor([[0.0]]), told(1.0, 2.0))
    assert float(found) == pytest.approx(0.81815, abs=1e-4)
    assert float(gaussian_divergence(torch.tensor([[1.0]]), torch.tensor([[math.log(2.0)]]), told(1.0, 2.0))) == 0.0


def test_samples_estimate_the_divergence_in_closed_form() -> None:
    actor = UnsquashedActor(2, 1, [8], torch.Generator().manual_seed(0))
    obs, prior = torch.ones(20_000, 2), told(0.3, 0.7)
    drawn = actor.sample(obs, torch.Generator().manual_seed(1))
    exact = gaussian_divergence(*actor.distribution(obs[:1]), prior)
    estimate = sampled_divergence(drawn.log_prob, drawn.action, prior).mean()
    assert float(estimate.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def test_gradient_of_the_divergence_explodes_as_the_scale_collapses() -> None:
    # d/dmu = (mu - mu0) / s0^2: 1 / 0.01 and 1 / 1.
    for scale, slope in ((0.1, 100.0), (1.0, 1.0)):
        mean = torch.tensor([[1.0]], requires_grad=True)
        gaussian_divergence(mean, torch.zeros(1, 1), told(0.0, scale)).sum().backward()
        assert mean.grad is not None and float(mean.grad) == pytest.approx(slope)


def test_cloning_losses_by_hand() -> None:
    # (0.5 - 0.1)^2 + (0 - 0.2)^2 = 0.2 in one row and 0 in the other.
    action = torch.tensor([[0.5, 0.0], [0.3, 0.3]])
    assert float(cloning_error(action, torch.tensor([[0.1, 0.2], [0.3, 0.3]]))) == pytest.approx(0.1)
    # tanh(0) = 0 at the mean of a unit Gaussian: -log N = 0.9189, and tanh has slope 1 there.
    assert float(cloning_likelihood(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))) == pytest.approx(
        0.9189, 1e-4
    )


def test_closed_form_is_for_gaussians() -> None:
    with pytest.raises(ValueError, match="closed-form"):
        NppacConfig(divergence="closed-form")
    assert make("nppac", divergence="closed-form", policy="gaussian").train_epoch()["divergence"] > 0


@pytest.mark.parametrize(("scale", "expected"), [("deviation", lambda std: std), ("variance", torch.square)])
def test_replay_keeps_what_the_prior_says(scale: str, expected: Callable[[Tensor], Tensor]) -> None:
    algorithm = make("nppac", scale=scale)
    algorithm.train_epoch()
    rows = Batch.unpack(algorithm.replay.rows[: algorithm.replay.size], 4, 1)
    for seen in (rows.obs, rows.next_obs):
        mean, std = Linear().predict(seen[:, :2])
        torch.testing.assert_close(seen[:, 2:], torch.cat([mean, expected(std)], -1))


def test_learner_is_sac_but_for_the_divergence() -> None:
    # With alpha 0 nothing is left of the prior: the same update whatever it says.
    batch = demonstrations(16)
    states = []
    for scale in (0.1, 3.0):
        learner = PriorActorCritic(
            2, 1, NppacConfig(alpha=0.0, hidden=[8], actor_hidden=[8]), torch.Generator().manual_seed(0)
        )
        extra = torch.full((16, 2), scale)
        learner.update(
            batch._replace(obs=torch.cat([batch.obs, extra], 1), next_obs=torch.cat([batch.next_obs, extra], 1))
        )
        states.append(learner.state_dict())
    assert state_equal(*states)


@every
def test_pretraining_comes_closer_to_the_demonstrations(name: str) -> None:
    algorithm = make(name, pretrain_epochs=80, learning_rate=3e-4 if name == "awac-online" else 1e-2)
    obs, action = demonstrations().obs, demonstrations().action
    before = (algorithm.act_nominal(obs) - action).square().mean()
    algorithm.pretrain(lambda step, note: None)
    # AWAC weighs by advantage and takes its own step size, so it comes less close.
    assert (algorithm.act_nominal(obs) - action).square().mean() < (1.0 if name == "awac-online" else 0.3) * before


@every
def test_the_optimizer_goes_on_from_what_pretraining_taught_it(name: str) -> None:
    algorithm = make(name)
    algorithm.pretrain(lambda step, note: None)
    state = algorithm.learner.optimizer.state
    # Two passes over 40 rows, 8 a step.
    assert all(int(state[weight]["step"]) == 10 for weight in algorithm.learner.actor.parameters())
    if name != "awac-online":
        assert not any(state[weight] for weight in algorithm.learner.critics.parameters())


@pytest.mark.parametrize("name", ["sac-bc", "dapg"])
def test_a_policy_that_was_cloned_without_a_spread_begins_with_its_means(name: str) -> None:
    algorithm = make(name)
    algorithm.pretrain(lambda step, note: None)
    obs = demonstrations().obs
    assert torch.equal(algorithm.first_actions(obs), algorithm.act_nominal(obs)) == (name == "sac-bc")


@every
@pytest.mark.parametrize("open_task", [False, True])
def test_resumes_in_the_middle_to_the_bit(name: str, open_task: bool, tmp_path: Path) -> None:
    def robots(seed: int) -> OnlineRobots:
        if not open_task:
            return PlantRobots(point(), 2, seed)
        task = find_task("InvertedPendulum-v5")
        assert isinstance(task, OpenTask)
        return Shown(task, 2, seed)

    whole = make(name, robots(0), episode_steps=7)
    whole.train_epoch()
    save_checkpoint(tmp_path / "part.safetensors", whole.state_dict())
    whole.train_epoch()
    second = make(name, robots(5), seed=5, episode_steps=7)
    second.load_state_dict(load_checkpoint(tmp_path / "part.safetensors"))
    second.train_epoch()
    assert second.finished and state_equal(second.state_dict(), whole.state_dict())


class Shown(OpenRobots):
    """Robots of gymnasium that show two numbers of their observations alone, as the point does."""

    def __init__(self, task: OpenTask, count: int, seed: int) -> None:
        super().__init__(task, count, seed)
        self.obs_dim = 2

    def start(self) -> np.ndarray:
        return super().start()[:, :2]

    def restart(self, lanes: np.ndarray) -> np.ndarray:
        return super().restart(lanes)[:, :2]

    def step(self, actions: np.ndarray) -> Any:
        moved = super().step(actions)
        return moved._replace(obs=moved.obs[:, :2])


def test_replay_may_start_with_the_demonstrations() -> None:
    assert make("nppac").replay.size == 0
    filled = make("nppac", fill_replay=True).replay
    assert filled.size == 40
    torch.testing.assert_close(filled.rows[:40, :2], demonstrations().obs)


CommandLine = Callable[..., Any]
RUN = (
    "algorithm.updates=20", "algorithm.steps_per_epoch=10", "algorithm.random_steps=20", "algorithm.batch_size=16",
    "algorithm.pretrain_epochs=1", "algorithm.hidden=[8]", "algorithm.actor_hidden=[8]", "evaluation_episodes=1",
    "evaluate_every=1", "algorithm.episode_steps=20",
)  # fmt: skip


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A hopper that is told to stand still, for 60 steps."""
    generator = np.random.default_rng(0)
    obs = (0.1 * generator.standard_normal((60, 11))).astype(np.float32)
    arrays = {
        "observations": obs, "actions": 0.1 * obs[:, :3], "rewards": np.ones(60, np.float32),
        "next_observations": np.roll(obs, -1, 0), "terminals": np.zeros(60, bool), "timeouts": np.arange(60) % 30 == 29,
    }  # fmt: skip
    metadata = Metadata(env="hopper", control_dt=0.008, source="by hand")
    save_npz(TransitionDataset.from_arrays(arrays, metadata, "test"), tmp_path / "demos.npz")
    return tmp_path / "demos.npz"


def test_train_export_and_confidence(command_line: CommandLine, recorded: Path, tmp_path: Path) -> None:
    data = ("dataset=file", f"dataset.path={recorded}", f"output={tmp_path / 'run'}")
    prior = ("prior=sparse-gp", "prior.steps=5", "prior.inducing=30", "prior.fit_rows=30")
    done = command_line("train", "algorithm=nppac", *data, *prior, *RUN)
    assert done.code == 0, done
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["control_steps"] for line in lines] == [30, 40] and "return" in lines[-1]
    done = command_line("export", f"run={tmp_path / 'run'}")
    assert done.code == 0, done
    bundle = Bundle.load(tmp_path / "run" / "nppac.bundle")
    assert bundle.manifest.prior is not None and "confidence" in command_line("inspect", bundle.path).out
    assert bundle.predict_prior is not None
    near = np.load(recorded)["observations"][3]
    far = near + 5.0 * (np.arange(11) > 4)  # velocities, within the robot's limits
    controller = Controller(bundle, low_confidence="hold")
    first, second = (controller.step(0.008 * step, obs) for step, obs in enumerate((near, far)))
    assert first.confidence is not None and second.confidence is not None
    assert first.confidence > 0.5 > second.confidence
    assert (first.state, second.state) == (State.RUNNING, State.HOLD)
    # Nothing is confident enough for 1, so that every step is one far from the demonstrations.
    done = command_line("run", f"bundle={bundle.path}", "steps=3", "low_confidence=slow", "least_confidence=1")
    assert done.code == 0 and "3 steps: the robot is too far from the demonstrations" in done.out
    done = command_line("export", f"run={tmp_path / 'run'}", "with_prior=false", f"output={tmp_path / 'bare.bundle'}")
    assert done.code == 0 and Bundle.load(tmp_path / "bare.bundle").manifest.prior is None
    done = command_line("run", f"bundle={tmp_path / 'bare.bundle'}", "steps=3", "low_confidence=slow")
    assert done.code == 2 and "no prior that tells its confidence" in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["algorithm=nppac", "dataset=online", "dataset.env=hopper"], "learns from a log"),
        (["algorithm=nppac", "world_model=x"], "learns in the simulator itself; leave world_model out"),
        (["algorithm=sac-bc", "prior=mle"], "algorithm=sac-bc is held to no prior of demonstrations; leave prior out"),
        (["algorithm=dapg", "start_from=x"], "starts from no earlier policy"),
    ],
)
def test_what_does_not_fit_is_refused(
    command_line: CommandLine, recorded: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    data = () if "dataset=online" in arguments else ("dataset=file", f"dataset.path={recorded}")
    done = command_line("train", *data, *arguments, f"output={tmp_path / 'run'}")
    assert done.code == 2 and sentence in done.err and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "run").exists()
