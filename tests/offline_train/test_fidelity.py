"""Fidelity: its scores by hand, the simulator as the judge of transitions, and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_train import write_log

from adapters.datasets import TransitionDataset, load_dataset, save_npz
from adapters.files import read_json
from offline_train.diffusion.fidelity import (
    LOG_ITSELF,
    correlation_score,
    judge,
    main,
    marginal_score,
    nearest_distance,
    start_distance,
)
from offline_train.diffusion.fidelity_figure import steps_figure
from offline_train.diffusion.upsample import synthetic_dataset
from sim.environments import make_environment
from sim.plant import BatchedPlant

CONFIG = {"method": {"name": "by hand"}}


def test_marginal_score_by_hand() -> None:
    # Column one: the same values, no gap. Column two: three quarters of [0, 1, 2, 3] lie below 3, none of [3, 4, 5, 6].
    real = np.array([[0, 0], [1, 1], [2, 2], [3, 3]], float)
    synthetic = np.array([[3, 3], [2, 4], [1, 5], [0, 6]], float)
    assert marginal_score(real, synthetic) == pytest.approx((1.0 + 0.25) / 2)


def test_correlation_score_by_hand() -> None:
    # Correlations 1 and -1: the greatest gap, a score of 0; and of a set with itself 1.
    x = np.arange(5.0)
    rising, falling = np.column_stack([x, 2 * x]), np.column_stack([x, -x])
    assert correlation_score(rising, falling) == pytest.approx(0.0)
    assert correlation_score(rising, rising) == pytest.approx(1.0)


def test_nearest_distance_by_hand() -> None:
    log = np.array([[0, 0], [3, 4]], np.float32)
    rows = np.array([[0, 1], [3, 4], [6, 8]], np.float32)
    assert nearest_distance(rows, log, chunk=2) == pytest.approx([1.0, 0.0, 5.0], abs=1e-4)
    # Of the log's own rows the nearest other one counts.
    assert nearest_distance(log, log, of_log=True) == pytest.approx([5.0, 5.0], abs=1e-4)


def test_start_distance_by_hand(tmp_path: Path) -> None:
    log = load_dataset(write_log(tmp_path / "log.npz"))
    starts = [rows.start for rows in log.episode_slices()]
    spread = log.observations.std(0)
    # Nowhere near but in one row for each start, off by 0.3 deviations in one column and 0.4 in another: 0.5.
    arrays = {**log.arrays(), "observations": np.full_like(log.observations, 100.0)}
    arrays["observations"][: len(starts)] = log.observations[starts]
    arrays["observations"][: len(starts), 3] += 0.3 * spread[3]
    arrays["observations"][: len(starts), 5] += 0.4 * spread[5]
    arrays["timeouts"] = ~arrays["terminals"]
    drawn = TransitionDataset.from_arrays(arrays, log.metadata, "the rows")
    assert start_distance(drawn, log) == pytest.approx(0.5, abs=1e-3)
    # Of the log itself another row is looked for.
    assert start_distance(log, log) > 0.0


@pytest.fixture(scope="module")
def robot_log() -> TransitionDataset:
    """Random actions of HalfCheetah in the simulator, a step from each of 200 starts."""
    environment, generator = make_environment("halfcheetah"), np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (200, environment.act_dim)).astype(np.float32)
    with BatchedPlant(environment, [environment.model()] * 200) as plant:
        obs = plant.reset(generator).astype(np.float32)
        plant.restart(np.arange(200), environment.states_of(obs))
        after, reward, _ = plant.step(actions)
    rows = np.column_stack([obs, actions, reward, after, np.zeros(200)]).astype(np.float32)
    shipped = load_dataset("package://adapters/datasets/data/halfcheetah-mixed.npz")
    return synthetic_dataset(rows, shipped, {"config": CONFIG, "seed": 0})


def test_what_the_simulator_does_has_no_error(robot_log: TransitionDataset) -> None:
    found = judge(robot_log, np.arange(200), robot_log)
    assert found.error.shape == (200,) and found.error.max() < 1e-8
    assert found.scaling == pytest.approx(1.0, abs=1e-6)


def test_error_is_the_mean_square_in_deviations_of_the_log(robot_log: TransitionDataset) -> None:
    # One column of eighteen, 17 observations and the reward, is off by half a deviation: 0.25 / 18.
    moved = robot_log.next_observations.copy()
    moved[:, 3] += 0.5 * moved[:, 3].std()
    arrays = {**robot_log.arrays(), "next_observations": moved}
    wrong = TransitionDataset.from_arrays(arrays, robot_log.metadata, "the log")
    assert judge(wrong, np.arange(50), robot_log).error == pytest.approx(np.full(50, 0.25 / 18), rel=1e-3)


def test_scaling_is_how_much_of_the_change_there_is(robot_log: TransitionDataset) -> None:
    slower = robot_log.observations + 0.7 * (robot_log.next_observations - robot_log.observations)
    arrays = {**robot_log.arrays(), "next_observations": slower}
    changed = TransitionDataset.from_arrays(arrays, robot_log.metadata, "the log")
    assert judge(changed, np.arange(200), robot_log).scaling == pytest.approx(0.7, abs=1e-5)


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = load_dataset(write_log(tmp_path / "log.npz"))
    config = CONFIG | {"dataset": {"name": "file", "path": str(tmp_path / "log.npz")}}
    generator = np.random.default_rng(0)
    for name, noise in (("same", 0.0), ("noisy", 2.0)):
        rows = real.packed()
        rows[:, :17] += noise * generator.standard_normal((len(rows), 17)).astype(np.float32)
        (tmp_path / name).mkdir()
        save_npz(synthetic_dataset(rows, real, {"config": config, "seed": 0}), tmp_path / name / "synthetic.npz")
    files = [str(tmp_path / name / "synthetic.npz") for name in ("same", "noisy")]
    assert main([str(tmp_path / "report"), *files]) == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in read_json(tmp_path / "report" / "fidelity.json")}
    assert [*rows] == [LOG_ITSELF, "same", "noisy"] and all(name in printed for name in rows)
    assert rows[LOG_ITSELF]["marginal"] < 1.0 and rows[LOG_ITSELF]["distance"][0] > 0.1
    assert rows["same"]["marginal"] == 1.0 and rows["same"]["distance"] == pytest.approx([0, 0, 0], abs=1e-2)
    assert rows["noisy"]["marginal"] < 0.9 and rows["noisy"]["distance"][1] > 1.0
    assert rows["noisy"]["made_by"]["source_sha256"] == real.metadata.sha256
    assert (tmp_path / "report" / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    assert main([str(tmp_path / "report"), str(tmp_path / "log.npz")]) == 2
    assert "real log" in capsys.readouterr().err
    assert main([]) == 2


@pytest.mark.parametrize(("steps", "drawn"), [((32, 16, 8), True), ((32, 32, 32), False), ((32, 16, 16), False)])
def test_steps_are_drawn_of_three_samplers_or_more(tmp_path: Path, steps: tuple[int, ...], drawn: bool) -> None:
    def row(count: int) -> dict[str, object]:
        sampler = {"solver": "multistep", "steps": count, "churn": 0.0}
        made_by = {"config": {"method": {"sampler": sampler}}}
        return {"marginal": 0.9, "correlation": 0.9, "error": [0.1, 0.2], "made_by": made_by}

    path = tmp_path / "steps.png"
    assert steps_figure(path, [{"made_by": None}, *map(row, steps)]) == drawn
    assert path.is_file() == drawn
