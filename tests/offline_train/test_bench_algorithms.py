"""`surefoot bench name=algorithms`: which commands it runs, that it goes on where it stopped, and the table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console

from adapters.errors import UserError
from offline_train import commands
from offline_train.bench import BenchConfig
from offline_train.bench_algorithms import Budget, Comparison, Log, algorithms_figure, algorithms_table, compare

LOGS = [path.stem for path in Path("configs/benchmark").glob("*.yaml")]

LOG = Log(
    name="tiny",
    collect=["env=halfcheetah", "recipe=random", "steps=2000", "seed=1"],
    algorithms={"mopo": ["algorithm.horizon=1"]},
    published={"bc": 36.1},
)
BUDGET = Budget(
    name="test",
    train=["evaluate_every=1000", "evaluation_episodes=1", "ensemble.holdout_fraction=0.5"],
    world_model=["ensemble.max_steps=10"],
    algorithms={"bc": ["algorithm.updates=20", "algorithm.steps_per_epoch=10"], "mopo": ["algorithm.updates=20"]},
)


def no_move(done: int, note: str = "", total: int | None = None) -> None:
    """A bar that nobody looks at."""


def comparison(folder: Path, algorithms: Sequence[str], budget: Budget = BUDGET) -> Comparison:
    return Comparison(LOG, budget, algorithms, [0, 1], folder)


def test_a_training_gets_the_log_the_budget_and_the_settings_for_the_log() -> None:
    done = comparison(Path("runs"), ["bc", "mopo"])
    every = ["dataset=file", "dataset.path=runs/tiny.npz", "dataset.name=tiny"]
    assert done.train_command("mopo", 1) == [
        "train",
        "algorithm=mopo",
        *every,
        "seed=1",
        "output=runs/mopo-1",
        *BUDGET.train,
        "world_model=runs/none-1",
        "algorithm.updates=20",
        "algorithm.horizon=1",
    ]
    assert "world_model=runs/none-0" not in done.train_command("bc", 0)
    assert done.train_command("none", 0)[-1] == "ensemble.max_steps=10"


def test_a_log_is_collected_every_training_done_once_and_its_figures_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[int] = []
    first = compare(comparison(tmp_path, ["bc"]), 2, lambda done, *_, **__: moves.append(done))
    assert moves == [0, 1, 2]
    assert first["log"]["transitions"] == 2000
    (row,) = first["rows"]
    assert (row["algorithm"], row["updates"], row["published"]) == ("bc", 20, 36.1)
    assert len({*row["returns"]}) == 2  # two trainings, two policies

    def refuse(words: Sequence[str], output: Path) -> None:
        raise AssertionError(f"ran {words} although it was done")

    monkeypatch.setattr(commands, "surefoot", refuse)
    assert compare(comparison(tmp_path, ["bc"]), 2, no_move) == first


def test_a_training_that_fails_is_told_with_its_reason_and_its_log(tmp_path: Path) -> None:
    budget = BUDGET.model_copy(update={"algorithms": {"bc": ["algorithm.updates=0"]}})
    with pytest.raises(UserError, match=r"algorithm=bc.* failed, .*bc-[01]\.log has all that it said: .*updates=0"):
        compare(comparison(tmp_path, ["bc"], budget), 2, no_move)


def test_an_algorithm_that_the_budget_does_not_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="budget=test has no algorithm 'iql'; choose of bc, mopo"):
        compare(comparison(tmp_path, ["iql"]), 2, no_move)
    assert not [*tmp_path.iterdir()]


def test_the_table_has_the_highest_return_first_with_students_interval(tmp_path: Path) -> None:
    # Returns of 1,000, 2,000 and 3,000: mean 2,000, standard deviation 1,000, t(0.975, 2) = 4.3027, so the interval
    # reaches 4.3027 x 1,000 / sqrt(3) = 2,484 to either side.
    report: dict[str, Any] = {
        "log": {"name": "tiny", "env": "halfcheetah", "transitions": 2000, "mean_return": -280.0, "best_return": 10.0},
        "rows": [
            {"algorithm": "bc", "updates": 20, "returns": [10.0, 11.0, 12.0], "scores": [], "published": 36.1},
            {
                "algorithm": "iql",
                "updates": 30,
                "returns": [1000.0, 2000.0, 3000.0],
                "scores": [10.0, 20.0, 27.0],
                "published": None,
            },
        ],
    }
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(algorithms_table(report))
    text = console.export_text()
    assert text.index("iql") < text.index("bc ")
    assert "2,000 (-484 to 4,484)" in text
    assert "19.0" in text  # the mean of 10, 20 and 27
    assert "36.1" in text
    algorithms_figure(report, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("budget", ["cpu", "cpu-bf16", "cpu-small", "gpu"])
def test_every_shipped_log_and_budget_is_whole(name: str, budget: str) -> None:
    with initialize_config_module("configs", version_base=None):
        config = compose("bench", ["name=algorithms", f"benchmark={name}", f"budget={budget}"])
    settings = BenchConfig.model_validate(OmegaConf.to_container(config, resolve=True))
    assert settings.benchmark.name == name
    assert {*settings.benchmark.algorithms} <= {*settings.budget.algorithms}
