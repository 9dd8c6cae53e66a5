"""What transitions are asked for: ranks of returns and errors, and changed worlds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import EPISODES, LENGTH, write_log

from adapters.datasets import TransitionDataset, load_dataset
from offline_train.diffusion.conditions import ConditionConfig, make_condition, ranks, returns_of_rows
from offline_train.replay import Batch


@pytest.fixture
def log(tmp_path: Path) -> TransitionDataset:
    return load_dataset(write_log(tmp_path / "log.npz"))


def taken(log: TransitionDataset, config: ConditionConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All rows, as they are learned, and their conditions."""
    rows = torch.from_numpy(log.packed())
    examples = make_condition(config, log).examples(log, rows)
    learned, condition = examples.take(torch.arange(len(rows)), torch.Generator().manual_seed(0))
    assert condition is not None
    return rows, learned, condition


def test_ranks_by_hand() -> None:
    # Of [1, 2, 2, 4]: nothing is below 0, 1 is half of one value, 2 follows one and is half of two, 9 follows all.
    known = np.array([1.0, 2.0, 2.0, 4.0])
    assert ranks(np.array([0.0, 1.0, 2.0, 3.0, 9.0]), known).tolist() == [0.0, 0.125, 0.5, 0.75, 1.0]


def test_every_row_has_its_episodes_return(log: TransitionDataset) -> None:
    found = returns_of_rows(log).reshape(EPISODES, LENGTH)
    expected = log.rewards.reshape(EPISODES, LENGTH).sum(1, dtype=np.float64)
    np.testing.assert_allclose(found, np.repeat(expected[:, None], LENGTH, 1))


def test_return_is_told_as_a_rank(log: TransitionDataset) -> None:
    config = ConditionConfig(name="return", low=0.8, high=1.0, weight=2.0)
    rows, learned, condition = taken(log, config)
    assert torch.equal(rows, learned)
    # Six episodes of one length: ranks 1/12, 3/12 ... 11/12 in the order of their returns, told within [-1, 1].
    order = np.argsort(np.argsort(log.episode_returns()))
    expected = 2 * (order + 0.5) / EPISODES - 1
    np.testing.assert_allclose(condition.reshape(EPISODES, LENGTH)[:, 0].numpy(), expected, atol=1e-6)
    wish = make_condition(config, log).wish(500, torch.Generator().manual_seed(0))
    assert (
        wish.weight == 2.0 and 0.6 <= float(wish.condition.min()) < 0.62 and 0.98 < float(wish.condition.max()) <= 1.0
    )


def test_context_scales_the_change_and_tells_it(log: TransitionDataset) -> None:
    rows, learned, condition = taken(log, ConditionConfig(name="context", low=0.5, high=0.8))
    real, changed = (Batch.unpack(one, log.obs_dim, log.act_dim) for one in (rows, learned))
    z = 1.0 + condition / 2.0
    torch.testing.assert_close(changed.next_obs, real.obs + z * (real.next_obs - real.obs), atol=1e-5, rtol=1e-4)
    assert torch.equal(changed.obs, real.obs) and torch.equal(changed.reward, real.reward)
    assert 0.5 <= float(z.min()) < 0.53 and 1.47 < float(z.max()) <= 1.5


def test_td_error_is_that_of_the_runs_critics(log: TransitionDataset, tmp_path: Path, command_line: object) -> None:
    small = ("algorithm.updates=4", "algorithm.steps_per_epoch=2", "algorithm.batch_size=8", "algorithm.hidden=[8]")
    source = ("dataset=file", f"dataset.path={tmp_path / 'log.npz'}", "evaluation_episodes=0")
    done = command_line("train", "algorithm=td3-bc", *source, *small, f"output={tmp_path / 'run'}")  # type: ignore[operator]
    assert done.code == 0, done
    from offline_train.diffusion.conditions import td_errors
    from offline_train.diffusion.fidelity import td_ranking
    from offline_train.finished_run import Run

    run = Run(tmp_path / "run")
    policy = run.policy
    found = td_errors(run, log)
    obs, after = (policy.normalise(torch.from_numpy(v[:5])) for v in (log.observations, log.next_observations))
    with torch.no_grad():
        values = policy.critics(obs, torch.from_numpy(log.actions[:5])).amin(0)  # type: ignore[operator, union-attr]
        following = policy.target_critics(after, policy.actor(after)).amin(0)  # type: ignore[operator, union-attr]
    expected = (torch.from_numpy(log.rewards[:5]) + 0.99 * following - values).abs()
    np.testing.assert_allclose(found[:5], expected.numpy(), rtol=1e-4)
    _, _, condition = taken(log, ConditionConfig(name="td-error", low=0.5, high=1.0, run=tmp_path / "run"))
    assert int(condition.argmax()) == int(found.argmax())
    # The upper half of the ranks, from 0.5 to 1, has a mean of 0.75.
    upper = found > np.median(found)
    arrays = {name: values[upper] for name, values in log.arrays().items()}
    arrays["timeouts"] = ~arrays["terminals"]
    surprising = TransitionDataset.from_arrays(arrays, log.metadata, "the upper half")
    td_rank = td_ranking(run, log)
    assert td_rank(log) == pytest.approx(0.5, abs=1e-9)
    assert td_rank(surprising) == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "return", "low": 0.9, "high": 0.1},
        {"name": "return", "low": 0.0, "high": 1.5},
        {"name": "context", "low": 0.2, "high": 1.0},
        {"name": "td-error", "low": 0.0, "high": 1.0},
        {"name": "return", "low": 0.0, "high": 1.0, "run": "somewhere"},
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"low|run"):
        ConditionConfig.model_validate(settings)
