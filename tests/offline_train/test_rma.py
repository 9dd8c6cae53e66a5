"""RMA: histories out of the log and out of rollouts, a module that learns from them, and its way to the robot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_train import SMALL, stop_at, write_log
from torch import Tensor
from toy import PUSH, Toy, state_equal

from adapters.files import read_jsonl
from deploy.bundle import Bundle
from deploy.controller import Controller
from offline_train.algorithms.augwm_actuators import delivered
from offline_train.algorithms.rma import Rma, RmaConfig, age_in_episode, commands_behind
from offline_train.algorithms.sac import SacConfig
from offline_train.checkpoint import load_checkpoint
from offline_train.replay import Batch
from sim.terminations import never

WINDOW, EPISODE = 8, 16
TINY = (
    "algorithm=rma",
    "algorithm.adaptation_updates=20",
    "algorithm.adaptation_starts=10",
    "algorithm.adaptation_horizon=5",
    "algorithm.embedding=[8]",
    "algorithm.channels=4",
    "algorithm.estimator_settings.window=6",
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_log(episodes: int = 120) -> Tensor:
    """Episodes of the noiseless toy; in every second one the second motor is sent nothing."""
    obs = torch.zeros(episodes, EPISODE + 1, 2)
    action = 2.0 * torch.rand(episodes, EPISODE, 2, generator=seeded(1)) - 1.0
    action[::2, :, 1] = 0.0
    action[:, ::7] = action[:, ::7].sign()
    obs[:, :1] = 0.3 * torch.randn(episodes, 1, 2, generator=seeded(2))
    for step in range(EPISODE):
        obs[:, step + 1] = obs[:, step] + PUSH * action[:, step]
    zeros = torch.zeros(episodes * EPISODE)
    return Batch(obs[:, :-1].flatten(0, 1), action.flatten(0, 1), zeros, obs[:, 1:].flatten(0, 1), zeros).pack()


def make(toy: Toy, terminated: Callable[[Tensor], Tensor] = never, **settings: Any) -> Rma:
    small: dict[str, Any] = {
        "updates": 301,
        "adaptation_updates": 300,
        "steps_per_epoch": 100,
        "batch_size": 64,
        "horizon": 1,
        "rollout_starts": 20,
        "retain_epochs": 1,
        "embedding": [32],
        "channels": 8,
        "adaptation_starts": 400,
        "adaptation_horizon": 10,
        "estimator_settings": {"window": WINDOW},
    }
    config = RmaConfig(sac=SacConfig(hidden=[16, 16]), **small | settings)
    return Rma(config, toy_log(), toy.model, terminated, seed=0)


def test_commands_behind_what_was_sent() -> None:
    # 0.5 is what a motor of gain 1 does under 0.5, of gain 0.5 under 1, of gain 1.25 under 0.4. With gain 1.25 any
    # command from 0.8 on gives all there is: 0.8 + 0.5 * 0.2 = 0.9. A dead motor got what it was asked.
    sent = torch.tensor([0.5, 0.5, 0.5, 1.0, -1.0, 0.0])
    gains = torch.tensor([1.0, 0.5, 1.25, 1.25, 1.25, 0.0])
    asked, spread = torch.full((6,), 0.7), torch.full((6,), 0.5)
    expected = torch.tensor([0.5, 1.0, 0.4, 0.9, -0.9, 0.7])
    torch.testing.assert_close(commands_behind(sent, gains, asked, spread), expected)


def test_motors_deliver_under_the_commands_behind_what_was_sent() -> None:
    sent = (3.0 * torch.rand(1_000, 4, generator=seeded()) - 1.5).clamp(-1, 1)
    gains = (1.3 * torch.rand(1_000, 4, generator=seeded(1))).maximum(sent.abs())
    command = commands_behind(sent, gains, torch.zeros(1_000, 4), torch.rand(1_000, 4, generator=seeded(2)))
    assert command.abs().max() <= 1
    torch.testing.assert_close(delivered(command, gains), sent)


def test_age_counts_from_where_a_row_does_not_go_on_the_last() -> None:
    # Two episodes, 1 -> 2 -> 3 and 7 -> 8.
    obs, next_obs = (torch.tensor(v)[:, None] for v in ([1.0, 2.0, 7.0], [2.0, 3.0, 8.0]))
    assert age_in_episode(obs, next_obs).tolist() == [0, 1, 0]


def test_histories_of_the_log_are_what_robots_with_those_gains_would_have_done(toy: Toy) -> None:
    rows, gains = make(toy)._log_histories(5_000)
    present, obs, action, change = rows.split([1, 2, 2, 2], -1)
    assert rows.shape == (5_000, WINDOW, 7) and gains.shape == (5_000, 2)
    # The newest row is that of the label.
    torch.testing.assert_close(change[:, -1], PUSH * delivered(action[:, -1], gains), atol=1e-5, rtol=0)
    # Present rows are the newest, go on one another, and are of all lengths; absent ones are zeros.
    length = present.sum((1, 2))
    assert torch.equal(present[..., 0], (torch.arange(WINDOW - 1, -1, -1) < length[:, None]).float())
    assert set(length.tolist()) == set(range(1, WINDOW + 1)) and (length == WINDOW).float().mean() > 0.25
    joined = (present[:, :-1] * (obs[:, :-1] + change[:, :-1] - obs[:, 1:])).abs().max()
    assert joined < 1e-5 and (rows * (1 - present) == 0).all()
    # Every second episode has a motor that was sent nothing: 0.8 of those are dead, but where the draw was dead anyhow.
    dead = (gains[:, 1] == 0).float().mean()
    assert 0.38 < dead < 0.5
    assert action[:, -1, 1][gains[:, 1] == 0].abs().max() > 0, "a dead motor is sent something all the same"


def test_gains_of_the_log_change_on_the_way_in_some(toy: Toy) -> None:
    rows, _ = make(toy, nominal_share=0, single_share=0, shared_share=0)._log_histories(2_000)
    _, _, action, change = rows[rows[:, 0, 0] > 0].split([1, 2, 2, 2], -1)
    # Where the first motor was not sent all it can, its gain is the change by the command.
    usual = (change[..., 0].abs() < 0.99 * PUSH) & (action[..., 0].abs() > 0.05)
    gain = torch.where(usual, change[..., 0] / (PUSH * action[..., 0]), torch.nan)
    spread = np.nanmax(gain.numpy(), 1) - np.nanmin(gain.numpy(), 1)
    assert 0.2 < (spread > 0.02).mean() < 0.4


def test_rollouts_are_of_the_robot_that_the_gains_describe(toy: Toy) -> None:
    algorithm = make(toy, change_chance=0.2, nominal_share=0.1)
    algorithm.sac.forward = lambda given: torch.full_like(given[:, 2:], 0.6)  # type: ignore[method-assign]
    rollouts = algorithm._roll_out()
    assert (rollouts.rows[:, :WINDOW] == 0).all() and len(rollouts.ends) == 400 * 10
    _, obs, action, change = rollouts.rows[:, WINDOW:].split([1, 2, 2, 2], -1)
    error, blind = (change - PUSH * sent for sent in (delivered(action, rollouts.gains), action))
    assert error.abs().mean() < 0.5 * blind.abs().mean()
    torch.testing.assert_close(obs[:, 1:], (obs + change)[:, :-1])
    # 0.2 of the steps draw anew, of which 0.1^2 draw nominal gains after nominal ones, and single dead motors may be
    # the same.
    changed = (rollouts.gains[:, 1:] != rollouts.gains[:, :-1]).any(-1).float().mean()
    assert changed == pytest.approx(0.2, abs=0.04)


def test_in_rollouts_the_policy_is_told_what_the_module_says(toy: Toy) -> None:
    algorithm, told = make(toy), []
    with torch.no_grad():
        algorithm.adaptation.head.weight.zero_()
        algorithm.adaptation.head.bias.fill_(-0.5)
    algorithm.sac.forward = lambda given: told.append(given[:, 2:]) or 0.1 * given[:, 2:]  # type: ignore[method-assign]
    algorithm._roll_out()
    # Nothing was seen at first; the module always says 1 - 0.5.
    assert (told[0] == 1.0).all() and len(told) == 10
    assert all((gains == 0.5).all() for gains in told[1:])


def test_no_history_ends_after_its_rollout(toy: Toy) -> None:
    algorithm = make(toy, terminated=lambda obs: obs[:, 0] > 0.5)
    rollouts = algorithm._roll_out()
    over = (rollouts.rows[:, WINDOW:, 1] + rollouts.rows[:, WINDOW:, 5] > 0.5).int().cumsum(1)
    rollout, step = rollouts.ends.unbind(-1)
    # The transition that ends a rollout is its last.
    assert len(rollouts.ends) < 400 * 10
    assert (over[rollout, step] <= 1).all() and (over[rollout, (step - 1).clamp(min=0)][step > 0] == 0).all()
    rows, _ = algorithm._rolled_histories(rollouts, 500)
    assert (rows[:, -1, 0] == 1).all()


def test_the_module_does_not_see_what_is_absent(toy: Toy) -> None:
    algorithm = make(toy)
    history = torch.randn(5, WINDOW, 7, generator=seeded())
    history[..., 0] = 1.0
    history[:, :4, 0] = 0.0
    other = history.clone()
    other[:, :4, 1:] = 3.0
    assert torch.equal(algorithm.adaptation(history), algorithm.adaptation(other))
    other[:, 5, 1:] = 3.0
    assert not torch.equal(algorithm.adaptation(history), algorithm.adaptation(other))


@pytest.mark.parametrize("log_share", [0.0, 1.0])
def test_the_module_learns_gains_and_leaves_the_policy_alone(toy: Toy, log_share: float) -> None:
    algorithm = make(toy, log_share=log_share)
    algorithm.train_epoch()
    assert algorithm.updates == 1
    for parameter in algorithm.sac.average_actor.parameters():
        parameter.mul_(3.0)  # so that a policy that was never trained moves
    policy = {name: value.clone() for name, value in algorithm.sac.state_dict().items()}
    epochs = []
    while not algorithm.finished:
        epochs.append(algorithm.train_epoch())
    assert len(epochs) == 3 and algorithm.updates == 301
    assert state_equal(policy, algorithm.sac.state_dict())
    rows, gains = (
        algorithm._log_histories(2_000) if log_share else algorithm._rolled_histories(algorithm._roll_out(), 2_000)
    )
    with torch.no_grad():
        error = (algorithm.adaptation(rows) - gains).square().mean()
    # Who always says the mean has an error of the variance, who always says 1 a larger one.
    assert error < 0.8 * gains.var(0).mean()


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"updates": 10, "adaptation_updates": 10}, {"told": False}, {"estimator": "actuator_gain"}):
        with pytest.raises(ValidationError):
            RmaConfig(**wrong)  # type: ignore[arg-type]


Train = Callable[..., Any]


@pytest.fixture
def train(command_line: Callable[..., Any], tmp_path: Path) -> Train:
    """Run `surefoot train` on a log of HalfCheetah's shape, small, into a folder under the test's own."""
    log = write_log(tmp_path / "log.npz")

    def run(folder: str, *arguments: str) -> Any:
        place = (f"dataset.path={log}", f"output={tmp_path / folder}")
        return command_line("train", "dataset=file", *place, *SMALL, *arguments)

    return run


def test_phase_one_is_taken_from_a_run_and_the_rest_resumes_to_the_bit(
    train: Train, command_line: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("told", "algorithm=augwm-actuators", "algorithm.updates=10").code == 0
    told = (*TINY, f"algorithm.told_run={tmp_path / 'told'}", f"world_model={tmp_path / 'told'}")
    assert train("whole", *told).code == 0
    policies = [load_checkpoint(tmp_path / run / "policy.safetensors") for run in ("told", "whole")]
    assert state_equal(*policies)
    steps = [line["step"] for line in read_jsonl(tmp_path / "whole" / "metrics.jsonl") if "adaptation_loss" in line]
    assert steps == [20, 30]

    with monkeypatch.context() as patch:
        stop_at(patch, Rma, "train_epoch", 2)
        assert train("cut", *told).code == 130
    assert train("cut", *told, "resume=true").code == 0
    assert state_equal(*(load_checkpoint(tmp_path / run / "adaptation.safetensors") for run in ("whole", "cut")))

    # The run stands by itself: what it was made from may be gone.
    (tmp_path / "told").rename(tmp_path / "elsewhere")
    done = command_line("export", f"run={tmp_path / 'whole'}")
    assert done.code == 0, done
    bundle = Bundle.load(tmp_path / "whole" / "rma.bundle")
    assert bundle.manifest.context is not None and bundle.manifest.context.settings["window"] == 6
    assert "adaptation.onnx" in bundle.manifest.files
    controller = Controller(bundle)
    commands = [controller.step(0.05 * step, np.full(17, 0.01 * step)) for step in range(8)]
    assert all(command.reason == 0 for command in commands)
    assert (commands[0].context == 1).all() and (commands[-1].context != 1).any()


@pytest.mark.parametrize(("algorithm", "sentence"), [("mopo", "is a run of mopo"), ("augwm-actuators", "other sizes")])
def test_a_run_without_a_policy_that_fits_is_refused(
    train: Train, tmp_path: Path, algorithm: str, sentence: str
) -> None:
    assert train("other", f"algorithm={algorithm}", "algorithm.sac.hidden=[9]").code == 0
    done = train("run", *TINY, f"algorithm.told_run={tmp_path / 'other'}")
    assert done.code == 2 and sentence in done.err, done


def test_a_folder_without_a_run_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text(json.dumps({"config": {"algorithm": {"name": "rma"}}}))
    done = train("run", *TINY, f"algorithm.told_run={tmp_path / 'empty'}")
    assert done.code == 2 and "there is no checkpoint" in done.err, done
