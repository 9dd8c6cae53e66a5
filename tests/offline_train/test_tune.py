"""`surefoot tune`: what it tries, what it stops, and how it goes on after it was killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna import create_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from test_train import SMALL, refusal, write_log
from toy import state_equal

import surefoot
from adapters.errors import UserError
from adapters.files import read_json, read_jsonl
from offline_train import tune
from offline_train.checkpoint import load_checkpoint
from offline_train.search_space import as_overrides, read_space
from offline_train.settings import NoAlgorithm, TrainConfig
from offline_train.train import Watch
from offline_train.tune import propose

CommandLine = Callable[..., Any]

PENALTY = '"algorithm.penalty=choice(max_aleatoric,ensemble_std)"'
SPACE = f'space=["algorithm.penalty_weight=tag(log,interval(0.01,100))",{PENALTY}]'


def test_space_in_hydras_words() -> None:
    found = read_space(
        [
            "algorithm.penalty=choice(max_aleatoric,ensemble_std)",
            "ensemble.members=range(5,14,2)",
            "algorithm.horizon=tag(log,range(1,41))",
            "algorithm.penalty_weight=tag(log,interval(0.05,50))",
            "algorithm.real_fraction=interval(0,1)",
        ]
    )
    assert found == {
        "algorithm.penalty": CategoricalDistribution(["max_aleatoric", "ensemble_std"]),
        "ensemble.members": IntDistribution(5, 13, step=2),
        "algorithm.horizon": IntDistribution(1, 40, log=True),
        "algorithm.penalty_weight": FloatDistribution(0.05, 50, log=True),
        "algorithm.real_fraction": FloatDistribution(0.0, 1.0),
    }
    assert as_overrides({"a": 7, "b.c": 0.123456, "d": "[8,8]"}) == ["a=7", "b.c=0.1235", "d=[8,8]"]


@pytest.mark.parametrize(
    "text",
    ["a=3", "a=range(0.5,2)", "a=range(3,3)", "a=interval(2,1)", "a=tag(log,interval(0,1))", "a=choice(1", "a=glob(*)"],
)
def test_what_is_no_search_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write KEY="):
        read_space([text])


Tune = Callable[..., Any]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "log.npz")


@pytest.fixture
def arguments(log: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of a small study in a folder under the test's own."""

    def make(folder: str, *more: str) -> list[str]:
        base = ["tune", "algorithm=mopo", "dataset=file", f"dataset.path={log}", f"output={tmp_path / folder}"]
        return [*base, *SMALL, *more]

    return make


@pytest.fixture
def study(command_line: CommandLine, arguments: Callable[..., list[str]]) -> Tune:
    return lambda *more: command_line(*arguments(*more))


def trials(folder: Path) -> list[dict[str, Any]]:
    """The trials that ended, without what tells the folder's name."""
    ended = [trial for trial in read_json(folder / "trials.json")["trials"] if trial["state"] != "failed"]
    return [{key: trial[key] for key in ("trial", "state", "settings", "score", "scores")} for trial in ended]


def pretend(monkeypatch: pytest.MonkeyPatch, worth: Callable[[Any], float]) -> list[tuple[Any, int]]:
    """Put a run in the place of training that only tells its score: at first none, half way half of it, then all.

    Returns:
        A list that gets the settings and the updates of every evaluation.
    """
    told: list[tuple[Any, int]] = []

    def run(config: TrainConfig, watch: Watch | None = None) -> Path:
        if isinstance(config.algorithm, NoAlgorithm):
            return config.output
        for updates in (5, 15, 30):
            told.append((config.algorithm, updates))
            assert watch is not None
            state: Any = SimpleNamespace(updates=updates, finished=updates == 30)
            watch(state, {"return": worth(config.algorithm) * updates / 30 * (updates > 5)})
        return config.output

    monkeypatch.setattr(tune, "run", run)
    return told


def best_near_one(algorithm: Any) -> float:
    """Highest, at 100, for ensemble_std with a weight of 1."""
    return 100.0 - 20.0 * abs(math.log10(algorithm.penalty_weight)) - 30.0 * (algorithm.penalty == "max_aleatoric")


def test_later_trials_are_where_scores_are_high(study: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, best_near_one)
    done = study("study", SPACE, "evaluation_episodes=1", "trials=11", "startup=4", "prune=false")
    assert done.code == 0, done
    scores = [trial["score"] for trial in trials(tmp_path / "study")]
    assert len(scores) == 11 and len({*scores[:4]}) == 4
    # One random setting in 16 scores more than 95: the right penalty, and a weight within a quarter of a decade of 1.
    assert sum(score > 95 for score in scores[4:]) >= 3
    report = read_json(tmp_path / "study" / "trials.json")
    best = report["trials"][report["best"]]
    assert best["score"] == max(scores) and best["settings"]["algorithm.penalty"] == "ensemble_std"
    assert best["command"] in done.out.replace("\n", " ") and best["seed"] == 0
    assert best["command"].startswith("surefoot train algorithm=mopo") and "penalty=ensemble_std" in best["command"]


def test_stopped_trials_count_in_what_is_proposed() -> None:
    space = read_space(["weight=interval(0,1)"])

    def ended(state: TrialState) -> list[FrozenTrial]:
        # High at 0.2 among those that were not stopped, ever worse towards 1.
        scores = {0.2: 5.0, 0.3: 4.9, 0.6: -20.0, 0.8: -30.0, 1.0: -40.0}
        states = [TrialState.COMPLETE] * 2 + [state] * 3
        return [
            create_trial(params={"weight": weight}, distributions=space, value=score, state=state)
            for (weight, score), state in zip(scores.items(), states, strict=True)
        ]

    proposed = {state: propose(space, ended(state), 2, seed=0) for state in (TrialState.COMPLETE, TrialState.PRUNED)}
    assert proposed[TrialState.PRUNED] == proposed[TrialState.COMPLETE]
    assert proposed[TrialState.PRUNED]["weight"] < 0.5
    unscored = create_trial(params={"weight": 0.9}, distributions=space, state=TrialState.PRUNED)
    assert propose(space, [*ended(TrialState.PRUNED), unscored], 2, seed=0)["weight"] < 0.5


def test_poor_trials_are_stopped(study: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = pretend(monkeypatch, best_near_one)
    assert study("study", SPACE, "evaluation_episodes=1", "trials=7", "startup=2").code == 0
    ended = trials(tmp_path / "study")
    pruned = [trial for trial in ended if trial["state"] == "pruned"]
    assert pruned and all([*trial["scores"]] == ["5", "15"] for trial in pruned)
    assert [*ended[0]["scores"]] == [*ended[1]["scores"]] == ["5", "15", "30"]
    # Nothing more is spent on them: three evaluations of the others, two of these.
    assert len(told) == 21 - len(pruned)
    # Those that end are at least as good, half way, as the median of the completed ones before them.
    assert max(trial["scores"]["15"] for trial in pruned) < max(trial["scores"]["15"] for trial in ended)


def test_no_trial_is_stopped_in_its_first_third(study: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The later a trial, the worse after 5 of 30 updates, and the better at the end.
    order: list[Any] = []

    def run(config: TrainConfig, watch: Watch | None = None) -> Path:
        if not isinstance(config.algorithm, NoAlgorithm):
            order.append(config.algorithm)
            for updates, sign in ((5, -1.0), (30, 1.0)):
                assert watch is not None
                state: Any = SimpleNamespace(updates=updates, finished=updates == 30)
                watch(state, {"return": sign * len(order)})
        return config.output

    monkeypatch.setattr(tune, "run", run)
    assert study("study", SPACE, "evaluation_episodes=1", "trials=5", "startup=2").code == 0
    assert [trial["score"] for trial in trials(tmp_path / "study")] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_score_that_is_no_number_stops_the_trial(study: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda algorithm: math.nan)
    done = study("study", SPACE, "evaluation_episodes=1", "trials=2")
    assert done.code == 0, done
    assert [(t["state"], t["score"]) for t in trials(tmp_path / "study")] == [("pruned", None)] * 2
    assert read_json(tmp_path / "study" / "trials.json")["best"] is None


def test_a_study_that_was_cut_comes_out_as_a_whole_one(
    study: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (SPACE, "evaluation_episodes=1", "startup=2")
    pretend(monkeypatch, best_near_one)
    assert study("whole", *settings, "trials=5").code == 0
    asked: list[Any] = []

    def cut(algorithm: Any) -> float:
        # In the second evaluation of the second trial, and in the first of a later one, which is no random one.
        asked.append(algorithm)
        if len(asked) in (5, 9):
            raise KeyboardInterrupt
        return best_near_one(algorithm)

    pretend(monkeypatch, cut)
    assert study("parts", *settings, "trials=5").code == 130
    assert "holds a study already" in refusal(study("parts", *settings, "trials=5"))
    assert "prune" in refusal(study("parts", *settings, "trials=5", "resume=true", "prune=false"))
    assert study("parts", *settings, "trials=5", "resume=true").code == 130
    assert study("parts", *settings, "trials=4", "resume=true").code == 0
    assert study("parts", *settings, "trials=5", "resume=true").code == 0
    assert trials(tmp_path / "parts") == trials(tmp_path / "whole")
    states = [trial["state"] for trial in read_json(tmp_path / "parts" / "trials.json")["trials"]]
    assert states.count("failed") == 2


ENSEMBLE = 'space=["ensemble.members=choice(2,3)","algorithm.horizon=range(1,6)"]'


def test_trials_of_one_ensemble_share_its_world_model(study: Tune, tmp_path: Path) -> None:
    done = study("study", ENSEMBLE, "score=model", "trials=5", "rollouts.steps=5", "prune=false", "seed=4")
    assert done.code == 0, done
    ended = trials(tmp_path / "study")
    sizes = {trial["settings"]["ensemble.members"] for trial in ended}
    assert sizes == {"2", "3"}
    assert len([*(tmp_path / "study" / "world_models").iterdir()]) == 2
    for trial in ended:
        run = tmp_path / "study" / "trials" / f"{trial['trial']:03d}"
        lines = read_jsonl(run / "metrics.jsonl")
        # None of them trained one, asked the simulator, or was trained in the one that judges.
        assert {line["stage"] for line in lines} == {"policy"} and not any("return" in line for line in lines)
        record = read_json(run / "run.json")["config"]
        assert f"members-{trial['settings']['ensemble.members']}" in record["world_model"]
        assert record["ensemble"]["members"] == int(trial["settings"]["ensemble.members"])
        assert record["algorithm"]["horizon"] == trial["settings"]["algorithm.horizon"]
    assert read_json(tmp_path / "study" / "judge" / "run.json")["config"]["seed"] == 5
    assert [*ended[0]["scores"]] == ["20", "30"]


def test_a_stopped_trial_writes_nothing_more(study: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worth = iter([3.0, 3.0, 2.0, 2.0, 1.0])
    monkeypatch.setattr(tune, "make_score", lambda config, base: lambda algorithm, figures: next(worth))
    assert study("study", ENSEMBLE, "score=model", "trials=3", "startup=2", "evaluate_every=2").code == 0
    assert [trial["state"] for trial in trials(tmp_path / "study")] == ["complete", "complete", "pruned"]
    run = tmp_path / "study" / "trials" / "002"
    assert [line["step"] for line in read_jsonl(run / "metrics.jsonl")] == [10, 20]
    assert not (run / "policy.safetensors").exists()
    # The checkpoint is that of the epoch before.
    assert load_checkpoint(run / "policy.part.safetensors")["updates"] == 10


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, and no longer than this."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def test_a_killed_process_goes_on_to_the_bit(study: Tune, arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    long = (ENSEMBLE, "score=model", "trials=2", "rollouts.steps=5", "algorithm.updates=200", "evaluate_every=5")
    assert study("whole", *long).code == 0
    command = [sys.executable, surefoot.__file__, *arguments("parts", *long)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "parts" / "trials" / "001" / "metrics.jsonl"
    try:
        wait_for(lambda: len(read_jsonl(metrics)) > 3, 60)
        # Frozen, so that it cannot be done before the second one asks.
        os.kill(process.pid, signal.SIGSTOP)
        assert "is at work" in refusal(study("parts", *long, "resume=true"))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    assert not (tmp_path / "parts" / "trials" / "001" / "policy.safetensors").exists()
    assert study("parts", *long, "resume=true").code == 0
    assert trials(tmp_path / "parts") == trials(tmp_path / "whole")
    for index in ("000", "001"):
        ends = [tmp_path / folder / "trials" / index / "policy.safetensors" for folder in ("whole", "parts")]
        assert state_equal(*map(load_checkpoint, ends))
        lines = [read_jsonl(path.parent / "metrics.jsonl") for path in ends]
        assert lines[0] == lines[1]
    states = [trial["state"] for trial in read_json(tmp_path / "parts" / "trials.json")["trials"]]
    assert states == ["complete", "failed", "complete"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["space=[]"], "the space is empty"),
        (['space=["algorithm.horizn=range(1,5)"]', "score=model"], "horizn"),
        (['space=["algorithm.penalty=choice(a,b)"]', "score=model"], "no such penalty"),
        (['space=["algorithm.horizon=range(1,5)"]'], "score=simulator takes evaluations"),
        (["world_model=outputs/none", "score=model"], "ensemble.members changes nothing"),
        (["score=guess"], "score"),
        (["judge=/nowhere", "score=model"], "/nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(study: Tune, tmp_path: Path, more: list[str], says: str) -> None:
    assert says in refusal(study("study", *more))
    assert not (tmp_path / "study" / "trials").exists()


def test_there_is_a_policy_to_score(command_line: CommandLine, log: Path, tmp_path: Path) -> None:
    settings = ["dataset=file", f"dataset.path={log}", f"output={tmp_path / 'study'}", "score=model"]
    assert "trains no policy" in refusal(command_line("tune", "algorithm=none", *settings))
