"""`surefoot select`: how it ranks runs, how far it trusts itself, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_train import SMALL, refusal, write_log

from adapters.files import read_json
from offline_train import select as command
from offline_train.select import choose, interval, judged_by, ranks

CommandLine = Callable[..., Any]

NAMES = ["a", "b", "c"]


def values(*means: float) -> np.ndarray:
    """Values of some runs at four first states, all a little apart from the mean."""
    return np.array(means)[:, None] + np.array([-0.3, -0.1, 0.1, 0.3])


@pytest.mark.parametrize(
    ("fqe", "rollouts", "disagreement", "index", "trust"),
    [
        # First by both, from every start.
        (values(1, 3, 2), values(10, 30, 20), [0.5, 0.9, 0.5], 1, "good"),
        # First by both, but by rollouts not clearly: the starts differ by more than the runs.
        (values(1, 3, 2), np.array([[0, 0, 0, 0], [9, -8, 9, -8], [0, 1, 0, 1]]), [1, 1, 1], 1, "fair"),
        # The mean ranks are 2, 1.5 and 2.5: second by fitted Q evaluation, first by rollouts.
        (values(3, 2, 1), values(1, 3, 2), [1, 1, 1], 1, "fair"),
        # First by both, and its rollouts go where the log says little.
        (values(1, 3, 2), values(10, 30, 20), [0.5, 1.6, 0.5], 1, "poor"),
        # Both mean ranks are 1.5: what fitted Q evaluation says is taken.
        (values(3, 2, 1), values(2, 3, 1), [1, 1, 1], 0, "fair"),
        # No world model.
        (values(1, 3, 2), None, None, 1, "poor"),
    ],
)
def test_choice(
    fqe: np.ndarray, rollouts: np.ndarray | None, disagreement: list[float] | None, index: int, trust: str
) -> None:
    choice = choose(NAMES, fqe, rollouts, disagreement)
    assert (choice.run, choice.trust) == (index, trust)


def test_choice_says_why() -> None:
    reasons = choose(NAMES, values(1, 3, 2), values(10, 20, 30), [1.0, 2.0, 1.0]).reasons
    # The differences are the same from every start, so their interval is a point.
    assert reasons[0] == "By fitted Q evaluation b is first: +1.0 (95 % +1.0 to +1.0) against c."
    assert reasons[1] == "By the model rollouts b is not first: -10.0 (95 % -10.0 to -10.0) against c."
    # Ranks 3, 1, 2 and 3, 2, 1: 1 - 6 * 2 / (3 * 8) = 0.5.
    assert "correlation of 0.50" in reasons[2]
    assert "2.0 times" in reasons[3] and "goes where the log says little" in reasons[3]


def test_ranks_and_interval() -> None:
    assert ranks(values(1, 3, 2)).tolist() == [3, 1, 2]
    assert ranks(values(1, 3, 3)).tolist() == [3, 1.5, 1.5]
    assert interval(np.full(5, 7.0)) == (7.0, 7.0)
    drawn = np.random.default_rng(0).normal(10.0, 2.0, 400)
    low, high = interval(drawn)
    # 1.96 * 2 / 20 = 0.196 on either side of the mean.
    assert low == pytest.approx(drawn.mean() - 0.196, abs=0.02) and high == pytest.approx(
        drawn.mean() + 0.196, abs=0.02
    )


def test_judged_by_truth() -> None:
    judged = judged_by(truth=np.array([100.0, 500.0, 300.0, 400.0]), scores=np.array([1.0, 2.0, 3.0, 4.0]))
    # True ranks 4, 1, 3, 2 against 4, 3, 2, 1: 1 - 6 * (0 + 4 + 1 + 1) / (4 * 15) = 0.4; the fourth is taken.
    assert judged["rank_correlation"] == pytest.approx(0.4)
    assert judged["regret"] == 100.0 and judged["regret_share"] == 0.25
    assert judged_by(np.ones(3), np.arange(3.0)) == {"rank_correlation": 0.0, "regret": 0.0, "regret_share": 0.0}


class Place(NamedTuple):
    """Three finished runs on one log."""

    folder: Path
    runs: list[Path]


FAST = ("fqe.updates=30", "fqe.hidden=[8,8]", "rollouts.steps=5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("select")
    return Place(folder, [folder / name for name in ("mopo", "augwm", "bc")])


@pytest.fixture
def select(command_line: CommandLine, place: Place, tmp_path: Path) -> Callable[..., Any]:
    """Run `surefoot select` on the runs, which are trained once."""
    log = place.folder / "log.npz"
    for run in place.runs:
        if not run.exists():
            if not log.exists():
                write_log(log)
            settings = SMALL if run.name != "bc" else [s for s in SMALL if "sac" not in s and "starts" not in s]
            common = ["dataset=file", f"dataset.path={log}", f"output={run}", f"algorithm={run.name}"]
            assert command_line("train", *common, *settings).code == 0

    def call(*arguments: str, runs: list[Path] = place.runs) -> Any:
        names = ",".join(map(str, runs))
        return command_line("select", f"runs=[{names}]", f"output={tmp_path / 'out'}", *FAST, *arguments)

    return call


def test_runs_are_ranked_and_one_is_taken(select: Callable[..., Any], place: Place, tmp_path: Path) -> None:
    done = select()
    assert done.code == 0, done
    report = read_json(tmp_path / "out" / "select.json")
    assert [row["run"] for row in report["runs"]] == [str(run) for run in place.runs]
    for column in ("fqe", "rollouts"):
        assert sorted(row[column]["rank"] for row in report["runs"]) == [1, 2, 3]
        for row in report["runs"]:
            assert row[column]["low"] <= row[column]["mean"] <= row[column]["high"]
    best = min(report["runs"], key=lambda row: row["fqe"]["rank"] + row["rollouts"]["rank"] + 0.01 * row["fqe"]["rank"])
    assert report["chosen"] == best["run"] and f"Take {best['run']}" in done.out.replace("\n", "")
    assert report["settings"]["world_model"] == str(place.runs[0])
    assert "judged_by_truth" not in report and "MuJoCo" not in done.out
    # One of each of the log's six episodes, and of the one that is held out.
    kept = read_json(tmp_path / "out" / "estimates.json")["policies"].values()
    assert {(len(k["fqe"]), len(k["rollouts"])) for k in kept} == {(6, 1)}


def test_goes_on_where_it_stopped_and_takes_more_runs(
    select: Callable[..., Any], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    estimate = command.estimate

    def counted(*arguments: Any) -> Any:
        asked.append(arguments[3])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return estimate(*arguments)

    monkeypatch.setattr(command, "estimate", counted)
    assert select(runs=place.runs[:2]).code == 130
    assert "holds a selection already" in refusal(select())
    assert "other settings" in refusal(select("resume=true", "fqe.updates=31"))
    assert select("resume=true").code == 0
    assert asked == [place.runs[0], place.runs[1], place.runs[1], place.runs[2]]
    parts = (tmp_path / "out" / "select.json").read_text()
    assert select(f"output={tmp_path / 'whole'}").code == 0
    assert (tmp_path / "whole" / "select.json").read_text() == parts


def test_truth_judges_the_choice(select: Callable[..., Any], place: Place, tmp_path: Path) -> None:
    done = select("truth=true", "truth_episodes=1", runs=place.runs[:2])
    assert done.code == 0, done
    report = read_json(tmp_path / "out" / "select.json")
    assert {*report["judged_by_truth"]} == {"fqe", "rollouts", "mean_rank"}
    assert all(np.isfinite(row["truth"]) for row in report["runs"])
    assert "Against MuJoCo, fitted Q evaluation: rank correlation" in done.out.replace("\n", " ")


def test_runs_without_a_world_model_are_ranked_by_the_log_alone(
    select: Callable[..., Any], place: Place, tmp_path: Path
) -> None:
    assert select(runs=[place.runs[2], place.runs[2]]).code == 0
    report = read_json(tmp_path / "out" / "select.json")
    assert report["settings"]["world_model"] is None and report["trust"] == "poor"
    assert "rollouts" not in report["runs"][0] and report["runs"][0]["disagreement"] is None
    whole = select(f"world_model={place.runs[0]}", f"output={tmp_path / 'judged'}", runs=[place.runs[2]] * 2)
    assert whole.code == 0, whole
    assert "rollouts" in read_json(tmp_path / "judged" / "select.json")["runs"][0]


def test_what_cannot_be_compared_is_refused(
    select: Callable[..., Any], command_line: CommandLine, place: Place, tmp_path: Path
) -> None:
    assert "there is no file" in refusal(select(runs=[place.runs[0], tmp_path / "nothing"]))
    assert "runs" in refusal(select(runs=place.runs[:1]))
    other = write_log(tmp_path / "other.npz", control_dt=0.05)
    with np.load(other) as stored:
        changed = dict(stored) | {"rewards": stored["rewards"] + 1.0}
    del changed["metadata"]
    np.savez(other, **changed)
    settings = ["algorithm=bc", "algorithm.updates=1", "algorithm.steps_per_epoch=1", "evaluation_episodes=0"]
    log = ["dataset=file", f"dataset.path={other}", "dataset.env=halfcheetah", "dataset.control_dt=0.05"]
    assert command_line("train", *settings, *log, f"output={tmp_path / 'strange'}").code == 0
    assert "learned from another log" in refusal(select(runs=[place.runs[0], tmp_path / "strange"]))
    assert not (tmp_path / "out").exists()
