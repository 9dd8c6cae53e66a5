"""One battery for every algorithm; a new one gets all of it for one line in `CASES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import Toy, toy_batch, toy_step

from offline_train.algorithms.augwm import AugWmConfig
from offline_train.algorithms.augwm_actuators import ActuatorAugWmConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.rma import RmaConfig
from offline_train.algorithms.sac import SacConfig
from offline_train.checkpoint import load_checkpoint, save_checkpoint, state_equal
from offline_train.export import PARITY_TOLERANCE, PolicyGraph, check_parity, to_onnx
from offline_train.train import make_algorithm
from sim.terminations import never

CASES: dict[str, Callable[..., MopoConfig]] = {
    "mopo": MopoConfig,
    "augwm-published": AugWmConfig,
    "augwm-actuators": ActuatorAugWmConfig,
    "domain-randomisation": partial(ActuatorAugWmConfig, told=False),
    "rma": partial(
        RmaConfig,
        adaptation_updates=10,
        adaptation_starts=20,
        adaptation_horizon=4,
        embedding=[8],
        channels=4,
        estimator_settings={"window": 3},
    ),
    "augwm": partial(AugWmConfig, shared=True, draw="nested", scaled_rollouts=0.5),
}

pytestmark = pytest.mark.parametrize("name", CASES)


def make(name: str, toy: Toy, seed: int = 0, **settings: Any) -> Mopo:
    """The algorithm on the toy robot, small."""
    small: dict[str, Any] = {
        "updates": 30,
        "steps_per_epoch": 10,
        "batch_size": 64,
        "horizon": 2,
        "rollout_starts": 100,
        "retain_epochs": 2,
        "sac": SacConfig(
            hidden=[32, 32],
            learning_rate=3e-3,
            discount=0.9,
            target_rate=0.05,
            target_entropy=-2.0,
            average_rate=0.02,
        ),
    }
    return make_algorithm(CASES[name](**small | settings), toy.packed, toy.model, never, seed)


def finish(algorithm: Mopo) -> list[dict[str, float]]:
    """Train to the end; returns the figures of every epoch."""
    epochs = []
    while not algorithm.finished:
        epochs.append(algorithm.train_epoch())
    return epochs


def toy_return(algorithm: Mopo) -> float:
    """Mean reward a step over 20 steps of the true, noiseless toy."""
    obs, rewards = toy_batch(200, seed=5).obs, []
    for _ in range(20):
        obs, reward = toy_step(obs, algorithm.act_nominal(obs))
        rewards.append(reward.mean())
    return float(torch.stack(rewards).mean())


def contexts(algorithm: Mopo, rows: int) -> Tensor | None:
    """Contexts as the algorithm may meet them, None where it reads none."""
    if not algorithm.context_dim:
        return None
    return 0.5 + torch.rand(rows, algorithm.context_dim, generator=torch.Generator().manual_seed(4))


def test_learns_the_toy(name: str, toy: Toy) -> None:
    # Standing at the origin is worth 1 a step; from |x|_1 = 1 on average a walk of 0.3 a step there takes three
    # steps, so the best mean over 20 steps is above 0.9. An untrained policy hardly moves: about 0.
    algorithm = make(name, toy, updates=400, steps_per_epoch=100, rollout_starts=500)
    before = toy_return(algorithm)
    epochs = finish(algorithm)
    assert before < 0.4
    assert toy_return(algorithm) > 0.75
    critic_losses = [epoch["critic_loss"] for epoch in epochs if "critic_loss" in epoch]
    assert critic_losses[-1] < 0.6 * critic_losses[0]
    assert algorithm.updates == 400


def test_figures_of_an_epoch_are_finite_numbers(name: str, toy: Toy) -> None:
    figures = make(name, toy).train_epoch()
    assert {"rollout_reward", "critic_loss", "actor_loss", "alpha"} <= figures.keys()
    assert all(isinstance(value, float) and abs(value) < 1e6 for value in figures.values())


def test_same_seed_trains_the_same_to_the_bit_and_another_does_not(name: str, toy: Toy) -> None:
    states = []
    for seed in (3, 3, 4):
        algorithm = make(name, toy, seed)
        finish(algorithm)
        states.append(algorithm.state_dict())
    assert state_equal(states[0], states[1])
    assert not state_equal(states[0]["sac"], states[2]["sac"])


def test_acting_is_deterministic_and_bounded(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    obs, context = 100.0 * toy_batch(50, seed=6).obs, contexts(algorithm, 50)
    generator = algorithm.generator.get_state()
    first, second = algorithm.act(obs, context), algorithm.act(obs, context)
    assert torch.equal(first, second)
    assert first.shape == (50, 2) and float(first.abs().max()) <= 1.0
    assert torch.equal(generator, algorithm.generator.get_state())
    assert algorithm.act_nominal(obs).shape == (50, 2)


def test_resumes_in_the_middle_to_the_bit(name: str, toy: Toy, tmp_path: Path) -> None:
    whole = make(name, toy)
    finish(whole)

    first = make(name, toy)
    first.train_epoch()
    save_checkpoint(tmp_path / "part.safetensors", first.state_dict())
    second = make(name, toy, seed=8)
    second.load_state_dict(load_checkpoint(tmp_path / "part.safetensors"))
    assert second.updates == 10
    finish(second)
    assert state_equal(whole.state_dict(), second.state_dict())


def test_a_checkpoint_does_not_change_with_further_training(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    algorithm.train_epoch()
    replay = algorithm.replay.state_dict()["rows"].clone()
    state = algorithm.state_dict()
    algorithm.train_epoch()
    assert torch.equal(state["replay"]["rows"], replay) and state["updates"] == 10


def test_last_epoch_is_cut_to_the_budget(name: str, toy: Toy) -> None:
    algorithm = make(name, toy, updates=25)
    finish(algorithm)
    assert algorithm.updates == 25


def test_starts_from_mopo_and_acts_as_it_did_under_every_context(name: str, toy: Toy) -> None:
    earlier = make("mopo", toy, seed=5)
    finish(earlier)
    algorithm = make(name, toy)
    algorithm.start_from(earlier.sac.state_dict())
    obs, action = toy_batch(50, seed=6).obs, toy_batch(50, seed=7).action
    context = contexts(algorithm, 50)
    torch.testing.assert_close(algorithm.act(obs, context), earlier.act(obs))
    both = obs if context is None else torch.cat([obs, context], -1)
    values = algorithm.sac.critics(algorithm.sac.normalise(both), action)
    torch.testing.assert_close(values, earlier.sac.critics(earlier.sac.normalise(obs), action))
    # The context is read all the same: its weights learn from the first update on.
    algorithm.train_epoch()
    if context is not None:
        other = algorithm.act(obs, contexts(algorithm, 50) + 0.4)
        assert not torch.allclose(algorithm.act(obs, context), other)


def test_exports_with_parity(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    finish(algorithm)
    context = contexts(algorithm, 1_000)
    inputs = {"obs": toy_batch(1_000, seed=7).obs, **({} if context is None else {"context": context})}
    graph: nn.Module = PolicyGraph(algorithm.sac, [-2.0, 0.0], [2.0, 10.0])
    onnx = to_onnx(graph, inputs, ["action"])
    assert check_parity(graph, onnx, inputs, "policy.onnx") < PARITY_TOLERANCE
    # One row alone gives what it gives in a batch, in command units: [-1, 1] to [-2, 2] and [0, 10].
    one = {key: value[:1] for key, value in inputs.items()}
    assert check_parity(graph, onnx, one, "policy.onnx") < PARITY_TOLERANCE
    action = algorithm.act(inputs["obs"], context)
    expected = torch.stack([2.0 * action[:, 0], 5.0 + 5.0 * action[:, 1]], -1)
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs.values()), expected)


def test_wrong_shapes_are_refused(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    with pytest.raises(RuntimeError, match="size"):
        algorithm.act_nominal(torch.zeros(5, 3))
    with pytest.raises(RuntimeError, match="size"):
        algorithm.act(torch.zeros(5, 2), torch.zeros(5, 7))
    narrow = Toy(toy.packed[:, :-1], toy.model)
    with pytest.raises(RuntimeError, match="split_sizes"):
        finish(make(name, narrow))


@pytest.mark.parametrize(
    ("setting", "value"), [("updates", 0), ("horizon", 0), ("real_fraction", 1.5), ("penalty_weight", -1.0), ("lr", 1)]
)
def test_settings_out_of_range_are_refused(name: str, toy: Toy, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        make(name, toy, **{setting: value})
