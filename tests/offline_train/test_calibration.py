"""Calibration of penalties: correlations by hand, the simulator beside the model, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import stats
from torch import Tensor
from toy import Toy, toy_batch

from adapters.datasets import Metadata, TransitionDataset, save_npz
from offline_train import calibration
from offline_train.calibration import (
    ERRORS,
    MEASURES,
    YARDSTICK,
    Visits,
    correlations,
    first_members,
    resampled,
    summary,
    visit,
)
from offline_train.models.penalties import PENALTIES
from offline_train.models.rollout import HORIZONS
from sim.environments import make_environment
from sim.oracle import TrueStep
from sim.plant import BatchedPlant

CommandLine = Callable[..., Any]


def test_correlations() -> None:
    errors = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    penalties = np.array([[1.0, 9.0, 4.0], [1.0, 4.0, 9.0], [5.0, 5.0, 5.0]])
    found = correlations(penalties, errors)
    assert found.shape == (2, 2, 3)
    # Ranks less their mean: -1 0 1 and 1 -1 0 of the errors, -1 1 0, -1 0 1 and 0 0 0 of the penalties, each but the
    # last of squared length 2. Products: 1, 2 and 0 with the first error, -2, -1 and 0 with the second.
    np.testing.assert_allclose(found[0], [[0.5, 1.0, 0.0], [-1.0, -0.5, 0.0]], atol=1e-12)
    for row in range(2):
        for column in range(2):
            expected = stats.pearsonr(errors[row], penalties[column]).statistic
            assert found[1, row, column] == pytest.approx(expected)


def visits(rows: int, starts: int) -> Visits:
    """Rows of a penalty that is the error and of others that are noise, in rollouts of five steps."""
    generator = np.random.default_rng(0)
    errors = generator.exponential(size=(len(ERRORS), rows))
    penalties = generator.exponential(size=(len(PENALTIES), rows))
    penalties[0] = errors[0]
    return Visits(np.arange(rows) % starts, np.arange(rows) // starts, penalties, errors, 0)


def test_resampled_rows_are_those_of_the_horizon_and_of_whole_rollouts() -> None:
    seen = visits(100, starts=20)
    drawn = resampled(seen, 2, np.random.default_rng(0), resamples=30)
    kept = seen.step < 2
    np.testing.assert_allclose(drawn[0], correlations(seen.penalties[:, kept], seen.errors[:, kept]))
    assert drawn.shape == (31, len(MEASURES), len(ERRORS), len(PENALTIES))
    np.testing.assert_allclose(drawn[:, :, 0, 0], 1.0)
    # Every start in the same number: where all rows of a start are alike, the number of its rows says nothing.
    alike = seen._replace(penalties=seen.penalties[:, seen.start], errors=seen.errors[:, seen.start])
    one, all_steps = (resampled(alike, horizon, np.random.default_rng(0), resamples=30) for horizon in (1, 5))
    np.testing.assert_allclose(one, all_steps, atol=1e-12)


def test_interval_covers_and_lead_is_over_the_yardstick() -> None:
    drawn = resampled(visits(400, starts=80), 5, np.random.default_rng(0), resamples=200)
    rows = {(row["penalty"], row["error"]): row for row in summary(drawn, 5)}
    perfect, noise = rows["max_aleatoric", "drawn"], rows["loo_kl", "drawn"]
    assert perfect["spearman"] == pytest.approx([1.0, 1.0, 1.0])
    value, low, high = noise["spearman"]
    assert low < value < high and -0.15 < low < 0 < high < 0.15
    yardstick = rows[YARDSTICK, "drawn"]
    assert perfect["pearson_lead"][0] == pytest.approx(1.0 - yardstick["pearson"][0], abs=1e-4)
    assert yardstick["pearson_lead"] == [0.0, 0.0, 0.0]
    assert perfect["spearman_lead"][1] > 0.8


def test_visits_compare_the_model_with_the_simulator(monkeypatch: pytest.MonkeyPatch, toy: Toy) -> None:
    def truth(environment: Any, obs: np.ndarray, action: np.ndarray) -> TrueStep:
        # A world that the model knows, but for a wall at 0.5 in the first direction; it breaks down beyond 1.3.
        after = obs + 0.3 * action
        after[:, 0] = np.minimum(after[:, 0], 0.5)
        return TrueStep(after, np.zeros(len(obs)), obs[:, 1] < 1.3)

    class Anywhere:
        @staticmethod
        def terminated(obs: np.ndarray) -> np.ndarray:
            return obs[:, 1] > 1.5

        @staticmethod
        def commands(action: np.ndarray) -> np.ndarray:
            return action

    monkeypatch.setattr(calibration, "true_step", truth)
    environment: Any = Anywhere()

    def ahead(obs: Tensor) -> Tensor:
        return torch.ones_like(obs) * 0.5

    starts = toy_batch(50, seed=4).obs
    found = visit(toy.model, ahead, starts, environment, steps=5, seed=0)
    assert found.penalties.shape == (len(PENALTIES), len(found.start)) and found.errors.shape[0] == len(ERRORS)
    assert found.left_out > 0 and len(found.start) + found.left_out < 5 * 50
    first = found.step == 0
    assert (np.bincount(found.start[first], minlength=50) <= 1).all()
    # One step of 0.15: where the wall is beyond reach the error is the model's noise, where it is near more.
    there = starts.numpy()[found.start[first], 0]
    free, near = found.errors[:, first][:, there < 0.2], found.errors[:, first][:, there > 0.6]
    assert free.mean() < 1e-3 < 1e-2 < near.mean()
    # What was drawn has the noise of 0.02 in two dimensions, the mean of the elites has not.
    assert free[0].mean() == pytest.approx(0.02**2, rel=0.6) and free[1].mean() < 0.5 * free[0].mean()
    again = visit(toy.model, ahead, starts, environment, steps=5, seed=0)
    assert np.array_equal(found.penalties, again.penalties) and np.array_equal(found.errors, again.errors)


def test_first_members_are_those_members(toy: Toy) -> None:
    smaller = first_members(toy.model, 2)
    batch = toy_batch(5, seed=1)
    for two, four in zip(
        smaller.predict(batch.obs, batch.action), toy.model.predict(batch.obs, batch.action), strict=True
    ):
        torch.testing.assert_close(two, four[:2])
    assert smaller.elite_index.tolist() == [0, 1] and toy.model.members == 4
    assert isinstance(first_members(toy.model, 1).draw(batch.obs, batch.action, torch.Generator()).mean, Tensor)
    with pytest.raises(Exception, match="members=5 cannot be taken of a world model of 4"):
        first_members(toy.model, 5)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of HalfCheetah moving at random, in three episodes."""
    environment, generator = make_environment("halfcheetah"), np.random.default_rng(0)
    actions = generator.uniform(-1.0, 1.0, (120, 1, 6))
    with BatchedPlant(environment, [environment.model()]) as plant:
        seen = np.stack([plant.reset(generator), *(plant.step(action)[0] for action in actions)])[:, 0]
    ends = np.arange(120) % 40 == 39
    arrays = {
        "observations": seen[:-1],
        "actions": actions[:, 0],
        "rewards": seen[:-1, 8],
        "next_observations": seen[1:],
        "terminals": np.zeros(120, bool),
        "timeouts": ends,
    }
    path = tmp_path / "log.npz"
    save_npz(TransitionDataset.from_arrays(arrays, Metadata(env="halfcheetah", control_dt=0.05), "the log"), path)
    return path


def test_command_writes_figures_and_draws_them(
    command_line: CommandLine, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "RESAMPLES", 20)
    small = ("ensemble.members=3", "ensemble.elites=2", "ensemble.hidden=[16]", "ensemble.max_steps=30")
    brief = ("algorithm.updates=4", "algorithm.steps_per_epoch=4", "algorithm.rollout_starts=8")
    where = ("dataset=file", f"dataset.path={log}", "evaluation_episodes=0", "algorithm.sac.hidden=[8]")
    done = command_line("train", "algorithm=mopo", f"output={tmp_path / 'run'}", *small, *brief, *where)
    assert done.code == 0, done
    path = tmp_path / "figures.json"
    runs = f"[{tmp_path / 'run'},{tmp_path / 'run'}]"
    done = command_line("bench", "name=calibration", f"run={runs}", "starts=6", "members=2", f"json={path}")
    assert done.code == 0, done
    assert "mean over 2 run(s)" in " ".join(done.out.split()) and "spearman" in done.out
    report = json.loads(path.read_text())
    assert report["command"] == f"surefoot bench name=calibration run={runs} starts=6 members=2"
    assert report["config"]["seed"] == 0 and report["resamples"] == 20
    first, second = report["rows"]
    assert first == second and first["members"] == 2 and first["visited"] + first["left_out"] == 6 * max(HORIZONS)
    assert len(first["correlations"]) == len(report["mean"]) == len(HORIZONS) * len(ERRORS) * len(PENALTIES)
    for row in report["mean"]:
        value, low, high = row["spearman"]
        assert -1 <= low <= high <= 1 and -1 <= value <= 1
    assert imread(path.with_suffix(".png")).shape[2] == 4


def test_calibration_needs_a_run_with_a_world_model(command_line: CommandLine) -> None:
    done = command_line("bench", "name=calibration")
    assert done.code == 2 and "give one, run=FOLDER" in done.err
