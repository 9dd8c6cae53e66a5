"""One battery for every algorithm; a new one gets all of it for one line in `MODEL_BASED` or `MODEL_FREE`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import Tensor, nn
from toy import Toy, state_equal, toy_batch, toy_step

from offline_train.algorithms.augwm import AugWmConfig
from offline_train.algorithms.augwm_actuators import ActuatorAugWmConfig
from offline_train.algorithms.augwm_mabe import MabeAugWmConfig
from offline_train.algorithms.awac import AwacConfig
from offline_train.algorithms.awbc import AwbcConfig
from offline_train.algorithms.base import Algorithm
from offline_train.algorithms.bc import BcConfig
from offline_train.algorithms.brac import BracConfig
from offline_train.algorithms.combo import ComboConfig
from offline_train.algorithms.cql import CqlConfig
from offline_train.algorithms.edac import EdacConfig
from offline_train.algorithms.iql import IqlConfig
from offline_train.algorithms.mabe import MabeConfig
from offline_train.algorithms.model_free import ActorCriticConfig, ModelFree, ModelFreeConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.morel import MorelConfig
from offline_train.algorithms.registry import LEARNERS, make_algorithm, make_model_free
from offline_train.algorithms.rma import RmaConfig
from offline_train.algorithms.sac import SacConfig
from offline_train.algorithms.td3_bc import Td3BcConfig
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.graphs import PARITY_TOLERANCE, PolicyGraph, check_parity, to_onnx
from offline_train.networks import training_precision
from sim.terminations import never

SMALL_CRITICS: dict[str, Any] = {"hidden": [32, 32], "learning_rate": 3e-3, "discount": 0.9, "target_rate": 0.05}
MODEL_BASED: dict[str, Callable[..., MopoConfig]] = {
    "mopo": MopoConfig,
    "mbpo": partial(MopoConfig, name="mbpo", penalty=None, penalty_weight=0.0),
    "morel": partial(MorelConfig, threshold_share=1.0),
    "mabe": partial(
        MabeConfig,
        prior=AwbcConfig(updates=15, steps_per_epoch=10, batch_size=64, **SMALL_CRITICS),
        target_divergence=4.0,
    ),
    "combo": partial(ComboConfig, actor_rate=1e-3, conservative_weight=0.05, samples=4),
    "augwm-published": AugWmConfig,
    "augwm-actuators": ActuatorAugWmConfig,
    "augwm-mabe": partial(
        MabeAugWmConfig,
        prior=AwbcConfig(updates=15, steps_per_epoch=10, batch_size=64, **SMALL_CRITICS),
        target_divergence=4.0,
    ),
    "augwm-pushed": partial(ActuatorAugWmConfig, pushes=((0, 0.2),)),
    "augwm-by-regret": partial(ActuatorAugWmConfig, pushes=((0, 0.2),), regret_share=0.5),
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
SMALL_SAC = SacConfig(
    hidden=[32, 32], learning_rate=3e-3, discount=0.9, target_rate=0.05, target_entropy=-2.0, average_rate=0.02
)
MODEL_FREE: dict[str, Callable[..., ModelFreeConfig]] = {
    "bc": partial(BcConfig, hidden=[32, 32], learning_rate=3e-3),
    "td3-bc": partial(Td3BcConfig, **SMALL_CRITICS),
    "iql": partial(IqlConfig, **SMALL_CRITICS),
    "awac": partial(AwacConfig, **SMALL_CRITICS, actor_hidden=[32, 32], temperature=0.5),
    "awbc": partial(AwbcConfig, **SMALL_CRITICS, temperature=0.02),
    "cql": partial(CqlConfig, sac=SMALL_SAC, actor_rate=1e-3, penalty_weight=0.5),
    "edac": partial(EdacConfig, sac=SMALL_SAC, critics=4, eta=0.02),
    "sac-n": partial(EdacConfig, sac=SMALL_SAC, name="sac-n", critics=4, eta=0.0),
    "brac-v": partial(
        BracConfig, **SMALL_CRITICS, actor_hidden=[32, 32], actor_rate=3e-3, behaviour_updates=15, warm_up=5
    ),
}


def kind(case: Callable[..., ModelFreeConfig]) -> type[ModelFreeConfig]:
    """The class of a case's settings."""
    assert isinstance(case, partial) and isinstance(case.func, type)
    return case.func


every = pytest.mark.parametrize("name", [*MODEL_BASED, *MODEL_FREE])
model_based = pytest.mark.parametrize("name", MODEL_BASED)
model_free = pytest.mark.parametrize("name", MODEL_FREE)


def make_mopo(name: str, toy: Toy, seed: int = 0, **settings: Any) -> Mopo:
    """A model-based algorithm on the toy robot, small."""
    small: dict[str, Any] = {
        "updates": 30,
        "steps_per_epoch": 10,
        "batch_size": 64,
        "horizon": 2,
        "rollout_starts": 100,
        "retain_epochs": 2,
        "sac": SMALL_SAC,
    }
    return make_algorithm(MODEL_BASED[name](**small | settings), toy.packed, toy.model, never, seed)


def make(name: str, toy: Toy, seed: int = 0, **settings: Any) -> Mopo | ModelFree:
    """The algorithm on the toy robot, small."""
    if name in MODEL_BASED:
        return make_mopo(name, toy, seed, **settings)
    small = {"updates": 30, "steps_per_epoch": 10, "batch_size": 64}
    return make_model_free(MODEL_FREE[name](**small | settings), toy.packed, 2, 2, seed)


def finish(algorithm: Algorithm) -> list[dict[str, float]]:
    """Train to the end; returns the figures of every epoch."""
    epochs = []
    while not algorithm.finished:
        epochs.append(algorithm.train_epoch())
    return epochs


def toy_return(algorithm: Algorithm) -> float:
    """Mean reward a step over 20 steps of the true, noiseless toy."""
    obs, rewards = toy_batch(200, seed=5).obs, []
    for _ in range(20):
        obs, reward = toy_step(obs, algorithm.act_nominal(obs))
        rewards.append(reward.mean())
    return float(torch.stack(rewards).mean())


def contexts(algorithm: Mopo | ModelFree, rows: int) -> Tensor | None:
    """Contexts as the algorithm may meet them, None where it reads none."""
    if isinstance(algorithm, ModelFree) or not algorithm.context_dim:
        return None
    return 0.5 + torch.rand(rows, algorithm.context_dim, generator=torch.Generator().manual_seed(4))


def act(algorithm: Mopo | ModelFree, obs: Tensor, context: Tensor | None) -> Tensor:
    """The action under a context, where the algorithm reads one."""
    return algorithm.act_nominal(obs) if isinstance(algorithm, ModelFree) else algorithm.act(obs, context)


@every
def test_case_is_named_as_what_it_makes(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    assert isinstance(algorithm, Mopo) or algorithm.config.name == name
    assert LEARNERS.keys() == MODEL_FREE.keys()


@model_based
def test_learns_the_toy(name: str, toy: Toy) -> None:
    # Standing at the origin is worth 1 a step; from |x|_1 = 1 on average a walk of 0.3 a step there takes three
    # steps, so the best mean over 20 steps is above 0.9. An untrained policy hardly moves: about 0.
    algorithm = make_mopo(name, toy, updates=400, steps_per_epoch=100, rollout_starts=500)
    before = toy_return(algorithm)
    epochs = finish(algorithm)
    assert before < 0.4
    assert toy_return(algorithm) > 0.75
    critic_losses = [epoch["critic_loss"] for epoch in epochs if "critic_loss" in epoch]
    # MABE and COMBO back up no entropy: their critics' values, and so their errors, begin small and grow.
    assert critic_losses[-1] < 0.6 * critic_losses[0] or name in ("mabe", "augwm-mabe", "combo")
    assert algorithm.updates == 400


@model_free
def test_learns_the_toy_from_random_actions(name: str, toy: Toy) -> None:
    # As above, but held to actions that are random: half of what there is to gain. What those are on average is to
    # stay where one is, and that is all that cloning alone can learn.
    phases = {"behaviour_updates": 100, "warm_up": 20} if name == "brac-v" else {}
    algorithm = make(name, toy, updates=400, steps_per_epoch=100, **phases)
    before = toy_return(algorithm)
    finish(algorithm)
    assert before < 0.4
    if name == "bc":
        assert algorithm.act_nominal(toy_batch(200, seed=6).obs).abs().mean() < 0.15
    else:
        assert toy_return(algorithm) > 0.45
    assert algorithm.updates == 400


@every
def test_figures_of_an_epoch_are_finite_numbers(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    epochs = finish(algorithm)
    expected = {"rollout_reward", "critic_loss", "actor_loss", "alpha"} if name in MODEL_BASED else {"actor_loss"}
    assert expected <= {figure for epoch in epochs for figure in epoch}
    for figures in epochs:
        assert all(isinstance(value, float) and abs(value) < 1e6 for value in figures.values())


@every
def test_learns_in_bfloat16_nearly_what_it_learns_in_float32(name: str, toy: Toy) -> None:
    exact, rough = make(name, toy), make(name, toy)
    figures = finish(exact)
    with training_precision("cpu", bf16=True):
        rough_figures = finish(rough)
    obs = toy_batch(50, seed=6).obs
    assert all(parameter.dtype == torch.float32 for parameter in rough.policy.parameters())
    assert rough.act_nominal(obs).dtype == torch.float32
    # A rounding of 2^-8, thirty times over; where it ends another rollout of MOReL's, the draws of the next are others.
    assert (rough.act_nominal(obs) - exact.act_nominal(obs)).abs().mean() < 0.08
    assert figures[0].keys() == rough_figures[0].keys() and figures != rough_figures


@every
def test_same_seed_trains_the_same_to_the_bit_and_another_does_not(name: str, toy: Toy) -> None:
    states = []
    for seed in (3, 3, 4):
        algorithm = make(name, toy, seed)
        finish(algorithm)
        states.append(algorithm.state_dict())
    assert state_equal(states[0], states[1])
    learned = "sac" if name in MODEL_BASED else "policy"
    assert not state_equal(states[0][learned], states[2][learned])


@every
def test_acting_is_deterministic_and_bounded(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    obs, context = 100.0 * toy_batch(50, seed=6).obs, contexts(algorithm, 50)
    generator = algorithm.generator.get_state()
    first, second = act(algorithm, obs, context), act(algorithm, obs, context)
    assert torch.equal(first, second)
    assert first.shape == (50, 2) and float(first.abs().max()) <= 1.0
    assert torch.equal(generator, algorithm.generator.get_state())
    assert algorithm.act_nominal(obs).shape == (50, 2)


@every
def test_observations_go_to_the_networks_device_and_actions_come_back(
    name: str, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Autocast does not know the meta device.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    # It holds no numbers: all goes well there until the action is copied back to where the observations
    # are, which says so. Were the observations left where they are, the networks would refuse them (RuntimeError).
    algorithm = make(name, toy)
    algorithm.policy.to("meta")
    with pytest.raises(NotImplementedError, match="no data"):
        algorithm.act_nominal(toy_batch(5, seed=6).obs)


@every
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


@model_based
def test_a_checkpoint_does_not_change_with_further_training(name: str, toy: Toy) -> None:
    algorithm = make_mopo(name, toy)
    algorithm.train_epoch()
    replay = algorithm.replay.state_dict()["rows"].clone()
    state = algorithm.state_dict()
    algorithm.train_epoch()
    assert torch.equal(state["replay"]["rows"], replay) and state["updates"] == 10


@every
def test_last_epoch_is_cut_to_the_budget(name: str, toy: Toy) -> None:
    algorithm = make(name, toy, updates=25)
    finish(algorithm)
    assert algorithm.updates == 25


@model_based
def test_starts_from_mopo_and_acts_as_it_did_under_every_context(name: str, toy: Toy) -> None:
    earlier = make_mopo("mopo", toy, seed=5)
    finish(earlier)
    algorithm = make_mopo(name, toy)
    algorithm.start_from(earlier.sac.state_dict())
    obs, action = toy_batch(50, seed=6).obs, toy_batch(50, seed=7).action
    context = contexts(algorithm, 50)
    torch.testing.assert_close(algorithm.act(obs, context), earlier.act(obs))
    both = obs if context is None else torch.cat([obs, context], -1)
    values = algorithm.sac.critics(algorithm.sac.normalise(both), action)
    torch.testing.assert_close(values, earlier.sac.critics(earlier.sac.normalise(obs), action))
    # The context is read all the same: its weights learn.
    finish(algorithm)
    if context is not None:
        other = algorithm.act(obs, contexts(algorithm, 50) + 0.4)
        assert not torch.allclose(algorithm.act(obs, context), other)


@every
def test_exports_with_parity(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    finish(algorithm)
    context = contexts(algorithm, 1_000)
    inputs = {"obs": toy_batch(1_000, seed=7).obs, **({} if context is None else {"context": context})}
    graph: nn.Module = PolicyGraph(algorithm.policy, [-2.0, 0.0], [2.0, 10.0])
    onnx = to_onnx(graph, inputs, ["action"])
    assert check_parity(graph, onnx, inputs, "policy.onnx") < PARITY_TOLERANCE
    # One row alone gives what it gives in a batch, in command units: [-1, 1] to [-2, 2] and [0, 10].
    one = {key: value[:1] for key, value in inputs.items()}
    assert check_parity(graph, onnx, one, "policy.onnx") < PARITY_TOLERANCE
    action = act(algorithm, inputs["obs"], context)
    expected = torch.stack([2.0 * action[:, 0], 5.0 + 5.0 * action[:, 1]], -1)
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs.values()), expected)


@every
def test_wrong_shapes_are_refused(name: str, toy: Toy) -> None:
    algorithm = make(name, toy)
    with pytest.raises(RuntimeError, match="size"):
        algorithm.act_nominal(torch.zeros(5, 3))
    if isinstance(algorithm, Mopo):
        with pytest.raises(RuntimeError, match="size"):
            algorithm.act(torch.zeros(5, 2), torch.zeros(5, 7))
    narrow = Toy(toy.packed[:, :-1], toy.model)
    with pytest.raises(RuntimeError, match="split_sizes"):
        finish(make(name, narrow))


@every
@pytest.mark.parametrize(("setting", "value"), [("updates", 0), ("steps_per_epoch", 0), ("batch_size", 1), ("lr", 1)])
def test_settings_out_of_range_are_refused(name: str, toy: Toy, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        make(name, toy, **{setting: value})


@model_based
@pytest.mark.parametrize(("setting", "value"), [("horizon", 0), ("real_fraction", 1.5), ("penalty_weight", -1.0)])
def test_settings_of_rollouts_out_of_range_are_refused(name: str, toy: Toy, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        make(name, toy, **{setting: value})


@pytest.mark.parametrize(
    "name", [name for name, case in MODEL_FREE.items() if issubclass(kind(case), ActorCriticConfig)]
)
@pytest.mark.parametrize(("setting", "value"), [("discount", 1.0), ("target_rate", 0.0), ("learning_rate", 0.0)])
def test_settings_of_critics_out_of_range_are_refused(name: str, toy: Toy, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        make(name, toy, **{setting: value})


def shipped_settings(name: str) -> dict[str, Any]:
    """What configs/algorithm/NAME.yaml says."""
    with initialize_config_module("configs", version_base=None):
        shipped = OmegaConf.to_container(compose("train", [f"algorithm={name}"]).algorithm)
    assert isinstance(shipped, dict)
    return {str(key): value for key, value in shipped.items()}


@model_free
def test_shipped_settings_are_the_defaults(name: str) -> None:
    changed = {"name": "sac-n", "eta": 0.0} if name == "sac-n" else {}
    # Every setting is spelled out, as the file is where they are explained.
    assert shipped_settings(name) == kind(MODEL_FREE[name])(**changed).model_dump()


@pytest.mark.parametrize("settings", [MopoConfig(), MorelConfig(), MabeConfig(), ComboConfig()])
def test_shipped_settings_of_model_based_algorithms_are_the_defaults(settings: MopoConfig) -> None:
    assert shipped_settings(settings.name) == settings.model_dump()


def test_mbpo_is_mopo_without_its_penalty() -> None:
    without = {"name": "mbpo", "penalty": None, "penalty_weight": 0.0}
    assert shipped_settings("mbpo") == MopoConfig().model_dump() | without
    for wrong in ({"name": "mbpo"}, {"penalty": None}):
        with pytest.raises(ValueError, match="penalty is null for mbpo and named for mopo"):
            MopoConfig(**wrong)
