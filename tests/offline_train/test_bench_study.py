"""`surefoot bench name=study`: which commands a grid comes to, its figures, and that every shipped study is whole."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from pydantic import ValidationError
from rich.console import Console

import surefoot
from adapters.errors import UserError
from offline_train import commands
from offline_train.bench import BenchConfig
from offline_train.bench_study import (
    Grid,
    Study,
    mean_of_last,
    minutes,
    minutes_at,
    panels,
    run_study,
    study_figure,
    study_tables,
)
from offline_train.commands import Piece
from offline_train.metrics import MetricsLog, evaluations
from offline_train.settings import TrainConfig

STUDIES = sorted(path.stem for path in Path("configs/study").glob("*.yaml"))

LAID_OUT: dict[str, Any] = {
    "name": "tiny",
    "title": "Cloning, of two logs",
    "seeds": [0, 1],
    "prepare": {
        "log-<rows>.npz": ["collect", "env=halfcheetah", "recipe=random", "steps=<rows>"],
        "model-<seed>": ["train", "algorithm=none", "seed=<seed>"],
    },
    "train": ["dataset=file", "dataset.path=<folder>/log-<rows>.npz", "evaluation_episodes=1"],
    "factors": {
        "rows": {"1000": ["ensemble.holdout_fraction=0.5"], "2000": []},
        "algorithm": {"bc": ["algorithm=bc", "algorithm.updates=20"], "mabe": ["world_model=<folder>/model-<seed>"]},
    },
}


def no_move(done: int, note: str = "", total: int | None = None) -> None:
    """A bar that nobody looks at."""


def grid(folder: Path, **changed: Any) -> Grid:
    study = Study.model_validate(LAID_OUT | changed)
    return Grid(study, study.seeds, folder)


def test_a_grid_is_every_value_of_every_factor() -> None:
    assert grid(Path("f")).cells == [
        {"rows": "1000", "algorithm": "bc"},
        {"rows": "1000", "algorithm": "mabe"},
        {"rows": "2000", "algorithm": "bc"},
        {"rows": "2000", "algorithm": "mabe"},
    ]


def test_a_training_has_the_settings_of_its_values_and_its_places_filled() -> None:
    shared = ["train", "dataset=file", "dataset.path=f/log-2000.npz", "evaluation_episodes=1"]
    assert grid(Path("f")).training({"rows": "2000", "algorithm": "mabe"}, 1) == Piece(
        Path("f/2000-mabe-1"), [*shared, "world_model=f/model-1", "seed=1", "output=f/2000-mabe-1"]
    )


def test_what_is_prepared_is_made_for_every_value_that_its_name_tells() -> None:
    done = grid(Path("f"))
    assert [piece.output.name for piece in done.prepared("log-<rows>.npz")] == ["log-1000.npz", "log-2000.npz"]
    assert done.prepared("model-<seed>")[1].words == ["train", "algorithm=none", "seed=1", "output=f/model-1"]


def test_places_that_nothing_fills_or_tells_apart_are_refused() -> None:
    with pytest.raises(ValidationError, match="<size> is none of algorithm, folder, rows, seed"):
        grid(Path("f"), train=["dataset.rows=<size>"])
    with pytest.raises(ValidationError, match=r"log\.npz differs by <rows>; its name has to, too"):
        grid(Path("f"), prepare={"log.npz": ["collect", "steps=<rows>"]})


def test_a_study_is_run_once_and_its_figures_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"prepare": {"log-<rows>.npz": LAID_OUT["prepare"]["log-<rows>.npz"]}}
    small |= {"factors": {"rows": {"2000": []}, "algorithm": {"bc": ["algorithm=bc", "algorithm.updates=20"]}}}
    small |= {"train": [*LAID_OUT["train"], "dataset.env=halfcheetah", "ensemble.holdout_fraction=0.5"]}
    moves: list[int] = []
    first = run_study(grid(tmp_path, **small), 2, lambda done, *_, **__: moves.append(done))
    assert moves == [0, 1, 2, 3]
    (row,) = first["rows"]
    assert (row["algorithm"], row["updates"], row["figure"], row["counted"]) == ("bc", 20, "return", "updates")
    assert len({*row["last"]}) == 2  # two trainings, two policies
    assert row["values"] == [[value] for value in row["last"]]

    def refuse(words: list[str], output: Path) -> None:
        raise AssertionError(f"ran {words} although it was done")

    monkeypatch.setattr(commands, "surefoot", refuse)
    assert run_study(grid(tmp_path, **small), 2, no_move) == first


def test_the_evaluations_of_the_last_tenth_count() -> None:
    lines = [{"step": 10 * place, "return": float(place)} for place in range(1, 21)]
    # Steps 190 and 200 lie beyond 0.9 x 200 = 180.
    assert mean_of_last(lines, "return") == (19 + 20) / 2
    assert mean_of_last(lines[-1:], "return") == 20


def test_a_run_that_was_never_evaluated_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"stage": "policy", "step": 1}) + "\n")
    with pytest.raises(UserError, match="never evaluated; set evaluation_episodes above 0"):
        evaluations(tmp_path)


def test_a_run_whose_return_is_no_number_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "policy") as log:
        log.write(1000, {"return": 5.0})
        log.write(2000, {"return": float("nan")})
    with pytest.raises(UserError, match="has diverged: its return at update 2,000 is no number"):
        evaluations(tmp_path)


def test_a_break_between_two_calls_is_no_part_of_the_minutes(tmp_path: Path) -> None:
    # Calls of 60 and 30 s, however long after each other: a minute and a half. The second's return is there at 1:20.
    for step, seconds in ((10, 60.0), (30, 30.0)):
        with MetricsLog(tmp_path, "policy", 1) as log:
            began = time.time()
            log._board.add_scalar("policy/return", 0.0, step, walltime=began + seconds - 10.0)
            log._board.add_scalar("policy/loss", 0.0, step + 5, walltime=began + seconds)
    # A call that is killed at once leaves an empty file, one that is killed while it writes half an event.
    whole = next((tmp_path / "tensorboard").glob("events.*")).read_bytes()
    (tmp_path / "tensorboard" / "events.killed").touch()
    (tmp_path / "tensorboard" / "events.cut").write_bytes(whole[: len(whole) // 4])
    assert minutes(tmp_path) == pytest.approx(1.5, abs=0.02)
    assert minutes_at(tmp_path / "lost", [10, 20]) == [0.0, 0.0]
    # Half way between the two of which TensorBoard knows is half of the time between them.
    assert minutes_at(tmp_path, [10, 20, 30]) == pytest.approx([50 / 60, 65 / 60, 80 / 60], abs=0.02)


def report(figure: str = "return", counted: str = "control steps") -> dict[str, Any]:
    """Two ways on two tasks; the first has seeds of 10, 20 and 30 in the end."""
    shared = {
        "updates": 100,
        "counted": counted,
        "figure": figure,
        "minutes": [1.0, 2.0, 3.0],
        "steps": [[50, 100]] * 3,
        "minutes_then": [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]],
    }
    first = {"last": [10.0, 20.0, 30.0], "values": [[0.0, 10.0], [0.0, 20.0], [0.0, 30.0]]}
    second = {"last": [0.5] * 3, "values": [[0.5, 0.5]] * 3}
    rows = [
        {"task": task, "way": way} | shared | figures
        for task in ("one", "two")
        for way, figures in (("first", first), ("second", second))
    ]
    return {"title": "ways", "factors": ["task", "way"], "rows": rows}


def printed(made: dict[str, Any]) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(study_tables(made))
    return console.export_text()


def test_tables_have_students_interval_and_for_the_simulator_the_way_there(tmp_path: Path) -> None:
    # Mean 20, standard deviation 10, t(0.975, 2) = 4.303: 4.303 x 10 / sqrt(3) = 24.8 to either side.
    text = printed(report())
    assert "20 (-5 to 45)" in text and "10, 20, 30" in text
    assert "one: mean return" in text and "two: mean return" in text
    assert "20 (10 to 30)" in text
    assert "mean return" not in printed(report(counted="updates"))
    assert "0.50 (0.50 to 0.50)" in printed(report("success"))
    np.testing.assert_array_equal(panels(report(), "minutes_then")["one"]["first"].steps, [1.0, 2.0])
    study_figure(report(), tmp_path / "ways.png")
    assert (tmp_path / "ways.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_is_whole(name: str) -> None:
    with initialize_config_module("configs", version_base=None):
        config = compose("bench", ["name=study", f"study={name}"])
        study = BenchConfig.model_validate(OmegaConf.to_container(config, resolve=True)).study
        assert study is not None and study.name == name
        laid_out = Grid(study, study.seeds[:1], Path("f"))
        pieces = [piece for each in study.prepare for piece in laid_out.prepared(each)]
        for piece in [*pieces, *(laid_out.training(cell, study.seeds[0]) for cell in laid_out.cells)]:
            command, *words = piece.words
            for alias, name_inside in surefoot.ALIASES.items():
                words = [word.replace(alias, name_inside) if word.startswith(alias) else word for word in words]
            settings = OmegaConf.to_container(compose(command, words), resolve=True)
            if command == "train":
                TrainConfig.model_validate(settings)
