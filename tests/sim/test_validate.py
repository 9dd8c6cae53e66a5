"""What a validation report says, and what validate refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import sim.validate
from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.controller import Controller
from sim.environments import make_environment
from sim.intervals import interquartile_mean
from sim.perturb import Perturbation, load_suite
from sim.rollout import EpisodeResult, run_episodes
from sim.scores import report_table
from sim.traces import Traces
from sim.validate import CONTEXTS, steps_to_90_percent, validate


def _ramp(length: int, at_step: int, duration: int, way: np.ndarray) -> np.ndarray:
    """A context at 1 that moves by `way`, evenly, in `duration` steps from `at_step` on, and stays there."""
    share = np.clip((np.arange(length) - at_step) / duration, 0, 1)
    return 1.0 + share[:, None] * way


def test_steps_to_90_percent_of_a_ramp() -> None:
    # 90 % of a ramp of 35 steps is 31.5 steps: the 32nd is the first beyond.
    assert steps_to_90_percent(_ramp(1000, 500, 35, np.array([0.3, -0.4])), 500) == 32


def test_steps_to_90_percent_of_a_jump() -> None:
    trace = np.ones((1000, 3))
    trace[520:, 1] = 0.5
    assert steps_to_90_percent(trace, 500) == 20


def test_steps_to_90_percent_counts_the_distance_along_the_way_alone() -> None:
    trace = _ramp(1000, 500, 35, np.array([0.4, 0.0]))
    # A swing across the way, which comes back, changes nothing.
    trace[505:510, 1] += 5.0
    assert steps_to_90_percent(trace, 500) == 32


def test_steps_to_90_percent_is_none_within_the_noise() -> None:
    generator = np.random.default_rng(0)
    assert steps_to_90_percent(np.ones((1000, 3)), 500) is None
    # 1.1 is no number of the computer's: means over windows of different lengths differ in their last digits.
    assert steps_to_90_percent(np.full((1000, 3), 1.1, np.float32), 500) is None
    assert steps_to_90_percent(1 + 0.1 * generator.standard_normal((1000, 3)), 500) is None
    moved = _ramp(1000, 500, 35, np.array([1.0, 0.0, 0.0])) + 0.01 * generator.standard_normal((1000, 3))
    assert steps_to_90_percent(moved, 500) == pytest.approx(32, abs=3)


def test_steps_to_90_percent_near_either_end() -> None:
    assert steps_to_90_percent(_ramp(60, 10, 10, np.array([0.5])), 10) is not None
    assert steps_to_90_percent(_ramp(1000, 999, 1, np.array([0.5])), 999) is None


def test_interquartile_mean_leaves_a_quarter_out_at_either_end() -> None:
    # Sorted: -100 1 2 3 4 5 6 1000; two go at either end; (2 + 3 + 4 + 5) / 4 = 3.5.
    assert interquartile_mean(np.array([3, 1000, 1, 2, -100, 4, 6, 5])) == 3.5
    # Three values: 3 / 4 rounds down to none.
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0


WORLDS = """
- {name: original}
- {name: heavy, body_mass: {"*": 1.5}}
- {name: late, at_step: 30, actuator_gain: {bthigh: 0.0}}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Three worlds, one of which changes in the middle."""
    path = tmp_path / "worlds.yaml"
    path.write_text(WORLDS)
    return path


def _validate(bundle: Path, suite: Path, **changes: Any) -> dict[str, Any]:
    """A short run."""
    return validate(bundle, [suite], **({"episodes": 2, "steps": 60, "seed": 3} | changes))


def test_d4rl_score_is_that_of_the_original_world(make_bundle: Callable[..., Path], suite: Path) -> None:
    bundle = make_bundle(context=False)
    report = _validate(bundle, suite, steps=1000, episodes=1)
    original = next(cell for cell in report["cells"] if cell["name"] == "original")
    # D4RL's reference returns of HalfCheetah are -280.178953 and 12135.
    score = 100 * (original["return_mean"] + 280.178953) / 12415.178953
    assert report["d4rl"]["scores"] == {"nominal": pytest.approx(score)}
    shown = str(report_table(report).caption)
    assert f"D4RL score at the original dynamics: nominal {score:.1f} = 100 (return" in shown
    assert shown.count("an older version of the task than HalfCheetah-v5") == 1
    # Its episodes have 1,000 steps, and its tasks are not all of ours.
    assert _validate(bundle, suite)["d4rl"] is None
    other = make_bundle(context=False, env="halfcheetah-backward", name="other")
    report = _validate(other, suite, steps=1000, episodes=1)
    assert report["d4rl"] is None and report_table(report).caption is None


def test_report_is_the_contracts(make_bundle: Callable[..., Path], suite: Path) -> None:
    bundle = make_bundle()
    report = _validate(bundle, suite)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["schema"] == 1
    assert (report["bundle"], report["algorithm"]) == (Bundle.load(bundle).sha256, "tiny")
    assert (report["env"], report["episodes"], report["seeds"], report["steps"]) == ("halfcheetah", 2, [3], 60)
    assert [(cell["name"], cell["context"]) for cell in report["cells"]] == [
        (world, context) for context in CONTEXTS for world in ("original", "heavy", "late")
    ]
    for cell in report["cells"]:
        assert len(cell["returns"]) == 2
        assert cell["return_mean"] == pytest.approx(np.mean(cell["returns"]))
        assert cell["return_std"] == pytest.approx(np.std(cell["returns"]))
        assert (cell["length_mean"], cell["falls"]) == (60, 0)
        assert ("return_after_change" in cell) == (cell["name"] == "late")
        assert ("steps_to_90_percent" in cell) == (cell["name"] == "late" and cell["context"] == "inferred")
    assert report["cells"][1]["perturbation"] == {"name": "heavy", "body_mass": {"*": 1.5}}
    assert report["cells"][2]["perturbation"] == {"name": "late", "at_step": 30, "actuator_gain": {"bthigh": 0.0}}


def test_a_policy_without_a_context_is_adapted_to_delays_alone(make_bundle: Callable[..., Path], suite: Path) -> None:
    bundle = make_bundle(context=False, delay=True)
    report = _validate(bundle, suite)
    assert [*report["summary"]] == ["nominal", "inferred"]
    assert [*_validate(bundle, suite, contexts=["oracle"])["summary"]] == ["nominal"]


def test_what_a_change_did_is_told_up_to_the_next_one(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "on.yaml").write_text("- {name: heavy, at_step: 20, body_mass: {'*': 1.5}}\n")
    (tmp_path / "off.yaml").write_text(
        "- {name: heavy, at_step: 20, body_mass: {'*': 1.5}, schedule: [{at_step: 40}]}\n"
        "- {name: later, schedule: [{at_step: 20, body_mass: {'*': 1.5}}, {at_step: 40}]}\n"
    )
    bundle = make_bundle()
    # An episode that ends where the change is undone tells the same of it.
    short = {cell["context"]: cell for cell in _validate(bundle, tmp_path / "on.yaml", steps=40)["cells"]}
    for cell in _validate(bundle, tmp_path / "off.yaml")["cells"]:
        assert cell["return_after_change"] == pytest.approx(short[cell["context"]]["return_after_change"], rel=1e-6)
        assert cell.get("steps_to_90_percent") == short[cell["context"]].get("steps_to_90_percent")
    assert cell["perturbation"]["schedule"] == [{"at_step": 20, "body_mass": {"*": 1.5}}, {"at_step": 40}]


def test_adaptation_is_timed_up_to_the_next_change() -> None:
    # The context moves in 35 steps after the change, and back at once when that is undone.
    context = _ramp(1500, 500, 35, np.array([0.3, -0.4]))
    context[1000:] = 1.0
    result = EpisodeResult(
        rewards=np.ones((1, 1, 1500), np.float32),
        lengths=np.full((1, 1), 1500),
        falls=np.zeros((1, 1), bool),
        context=context[None, None],
    )
    world = Perturbation.model_validate({"name": "x", "at_step": 500, "gravity": 0.5, "schedule": [{"at_step": 1000}]})
    cell = sim.validate._cell("suite", world, "inferred", result, 0)
    assert cell["return_after_change"] == 500
    assert cell["steps_to_90_percent"] == 32


@pytest.mark.parametrize(
    ("world", "expected"), [({}, 800 / 1400), ({"at_step": 500}, 300 / 400), ({"at_step": 1400}, None)]
)
def test_settled_reward_begins_a_hundred_steps_after_the_change(world: dict[str, Any], expected: float | None) -> None:
    # One a step from 600 to 899 and from 1,000 on, nothing else; the world changes again at step 1,000. From step 100
    # on that is 300 + 500 of 1,400 steps, from 600 to 1,000 it is 300 of 400; 1,500 - 1,400 leaves no step to count.
    rewards = np.zeros((1, 1, 1500), np.float32)
    rewards[..., 600:900] = rewards[..., 1000:] = 1.0
    result = EpisodeResult(rewards, np.full((1, 1), 1500), np.zeros((1, 1), bool), context=None)
    schedule = [{"at_step": 1000}] if world.get("at_step") == 500 else []
    described = Perturbation.model_validate({"name": "x", "gravity": 0.5, "schedule": schedule} | world)
    cell = sim.validate._cell("suite", described, "nominal", result, 0)
    assert cell.get("settled_reward") == (None if expected is None else pytest.approx(expected))


def test_shipped_suites_of_a_robots_parts_are_those_of_the_bundles_robot(make_bundle: Callable[..., Path]) -> None:
    report = validate(make_bundle(), ["crippled", "limbs", "worn"], episodes=1, steps=3, contexts=["nominal"])
    suites = [cell["suite"] for cell in report["cells"]]
    assert [suites.count(suite) for suite in ("crippled", "limbs", "worn")] == [12, 14, 24]


def test_summary_is_made_of_the_returns(make_bundle: Callable[..., Path], suite: Path) -> None:
    report = _validate(make_bundle(), suite)
    assert list(report["summary"]) == list(CONTEXTS)
    for context, summary in report["summary"].items():
        returns = np.concatenate([cell["returns"] for cell in report["cells"] if cell["context"] == context])
        assert summary["return_mean"] == pytest.approx(returns.mean())
        # Six returns: 6 / 4 rounds down to one left out at either end.
        assert summary["return_iqm"] == pytest.approx(np.sort(returns)[1:-1].mean())
        assert summary["suites"]["worlds"]["return_mean"] == summary["return_mean"]


def test_contexts_differ_and_the_nominal_one_is_the_plain_controllers(
    make_bundle: Callable[..., Path], suite: Path
) -> None:
    bundle = make_bundle()
    report = _validate(bundle, suite)
    heavy = {cell["context"]: cell["returns"] for cell in report["cells"] if cell["name"] == "heavy"}
    assert len({tuple(returns) for returns in heavy.values()}) == 3
    loaded = Bundle.load(bundle)
    result = run_episodes(
        make_environment("halfcheetah"),
        load_suite(suite),
        lambda plant: Controller(loaded, context="nominal", batch=(len(plant),)),
        episodes=2,
        seed=3,
        steps=60,
    )
    assert heavy["nominal"] == result.returns[1].tolist()
    late = next(cell for cell in report["cells"] if cell["name"] == "late")
    assert late["return_after_change"] == pytest.approx(result.rewards[2, :, 30:].sum(-1).mean())


def test_report_is_the_same_again_and_on_more_threads(make_bundle: Callable[..., Path], suite: Path) -> None:
    bundle = make_bundle()
    assert _validate(bundle, suite) == _validate(bundle, suite, threads=2)


def test_bundle_without_context_has_nominal_alone(make_bundle: Callable[..., Path], suite: Path) -> None:
    report = _validate(make_bundle(context=False), suite)
    assert {cell["context"] for cell in report["cells"]} == {"nominal"}
    assert list(report["summary"]) == ["nominal"]


def test_several_suites_in_one_run(make_bundle: Callable[..., Path], suite: Path) -> None:
    report = validate(make_bundle(), ["mass-damping", suite], episodes=1, steps=31, contexts=["nominal"])
    assert len(report["cells"]) == 25 + 3
    assert list(report["summary"]["nominal"]["suites"]) == ["mass-damping", "worlds"]


def test_progress_covers_the_run(make_bundle: Callable[..., Path], suite: Path) -> None:
    seen: list[tuple[int, int]] = []
    _validate(make_bundle(), suite, progress=lambda done, total: seen.append((done, total)))
    # 3 worlds x 2 episodes x 60 steps x 3 contexts.
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == 1080
    assert {total for _, total in seen} == {1080}


def test_table_shows_score_as_return_over_the_yardstick(make_bundle: Callable[..., Path], suite: Path) -> None:
    report = _validate(make_bundle(), suite)
    report["cells"][1]["return_mean"] = 2450.0
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report_table(report))
    text = console.export_text()
    # HalfCheetah's yardstick is 4900: 2450 / 4900 = 0.50.
    assert "2450 (0.50)" in text
    assert all(word in text for word in ("original", "heavy", "late", *CONTEXTS, "worlds: interquartile mean"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contexts": ["guessed"]}, "no context 'guessed'; choose from nominal, inferred, oracle"),
        ({"contexts": []}, "contexts is empty"),
        ({"episodes": 0}, "episodes=0"),
        ({"steps": 30}, "'late': at_step 30 is past the episode's 30 steps"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_bad_settings_are_refused(
    make_bundle: Callable[..., Path], suite: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _validate(make_bundle(), suite, **changes)


def test_bundle_that_does_not_fit_is_refused(make_bundle: Callable[..., Path], suite: Path) -> None:
    with pytest.raises(UserError, match="observation size is 19, and that of halfcheetah is 17"):
        _validate(make_bundle(context=False, spare_terms=2), suite)
    with pytest.raises(UserError, match="no environment 'moonwalker'"):
        _validate(make_bundle(env="moonwalker"), suite)
    with pytest.raises(UserError, match="observation size is 17, and that of hopper is 11"):
        _validate(make_bundle(env="hopper"), suite)
    with pytest.raises(UserError, match="no suite 'nowhere'"):
        validate(make_bundle(), ["nowhere"])


def _surefoot(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person does."""
    command = [sys.executable, "-m", "surefoot", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_command_writes_the_report_and_prints_the_table(
    make_bundle: Callable[..., Path], suite: Path, tmp_path: Path
) -> None:
    bundle, place = make_bundle(), tmp_path / "here"
    place.mkdir()
    done = _surefoot(
        "validate",
        f"bundle={bundle}",
        f"perturbations={suite}",
        "episodes=2",
        "steps=60",
        "seed=3",
        "threads=1",
        "output=report",
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert "heavy" in done.stdout
    assert json.loads((place / "report" / "validation.json").read_text()) == _validate(bundle, suite)
    assert [path.name for path in place.iterdir()] == ["report"]
    assert sorted(path.name for path in (place / "report").iterdir()) == [
        "report.html",
        "traces.npz",
        "validation.json",
    ]
    page = (place / "report" / "report.html").read_text()
    assert "motor bthigh dead from step 30 on" in page and "surefoot validate bundle=" in page
    with np.load(place / "report" / "traces.npz") as traces:
        assert traces["inferred/worlds/late/context"].shape == (60, 17)
        assert {name.split("/")[2] for name in traces.files} == {"late"}


def test_traces_are_means_over_the_episodes_that_go_on() -> None:
    world = Perturbation.model_validate({"name": "x", "at_step": 2, "gravity": 0.5})
    result = EpisodeResult(
        rewards=np.array([[[1, 2, 3, 0], [3, 0, 0, 0]]], np.float32),
        lengths=np.array([[3, 1]]),
        falls=np.array([[True, True]]),
        context=np.array([[[[1.0], [2.0], [4.0], [0.0]], [[3.0], [9.0], [9.0], [0.0]]]], np.float32),
    )
    traces = Traces()
    traces.add("inferred", [("s", world), ("s", Perturbation(name="never-changes"))], result)
    ((name, trace),) = traces.by_context["inferred"].items()
    assert (name.suite, name.name, trace.changes) == ("s", "x", [2])
    # Step 0 has both episodes, (1 + 3) / 2; steps 1 and 2 the first one alone; step 3 has none.
    np.testing.assert_array_equal(trace.reward, [2, 2, 3, np.nan])
    assert trace.context is not None
    np.testing.assert_array_equal(trace.context[:, 0], [2, 2, 4, np.nan])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (["bundle=no.bundle"], "no.bundle"),
        ([], "compare=[A,B]"),
        (["bundle=no.bundle", "episodes=ten"], "episodes"),
        (["bundle=no.bundle", "episode=10"], "episode"),
    ],
    ids=["no such bundle", "no bundle given", "not a number", "unknown setting"],
)
def test_command_answers_a_mistake_without_a_traceback_and_leaves_nothing(
    changes: list[str], word: str, suite: Path, tmp_path: Path
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    done = _surefoot("validate", f"perturbations={suite}", *changes, cwd=place)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "validating" not in done.stderr
    assert word in done.stderr.strip().splitlines()[-1]
    assert not list(place.iterdir())
