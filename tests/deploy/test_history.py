"""The estimator that asks a network: what it shows the network, what it makes of the answer, and its bundle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from leg import ACT, GAIN, OBS, PUSH, dynamics_graph, golden, graph, spec
from onnx import helper
from rich.console import Console

from adapters.errors import UserError
from deploy.bundle import Bundle, ContextSpec, write_bundle
from deploy.context import ContextEstimator, make_estimator
from deploy.controller import Controller
from deploy.inspect import show

WINDOW, WIDTH = 3, 1 + 2 * OBS + ACT
STD = 0.5
# A module whose estimate is the mean command of the window plus 1.
WEIGHTS = np.zeros((WINDOW, WIDTH, ACT), np.float32)
WEIGHTS[:, 1 + OBS : 1 + OBS + ACT] = np.eye(ACT) / WINDOW


def adapt(history: np.ndarray) -> np.ndarray:
    return 1.0 + history @ WEIGHTS.reshape(-1, ACT)


def make(batch: tuple[int, ...] = (), module: Any = adapt) -> ContextEstimator:
    return make_estimator(
        "history",
        predict_change=lambda obs, action: (np.zeros(np.shape(obs)), np.full(np.shape(obs), STD)),
        low=np.zeros(ACT),
        high=np.full(ACT, 1.3),
        nominal=np.ones(ACT),
        act_dim=ACT,
        settings={"window": WINDOW},
        batch=batch,
        adapt=module,
    )


def feed(estimator: ContextEstimator, command: float, change: float = 0.0, **given: Any) -> None:
    shape = estimator.context(np.zeros(OBS), None).shape[:-1]
    obs = np.ones((*shape, OBS))
    estimator.update(obs, np.full((*shape, ACT), command), obs + change, **given)


def test_the_module_reads_transitions_the_newest_last_and_zeros_before_the_first() -> None:
    shown: list[np.ndarray] = []
    estimator = make(module=lambda history: shown.append(history.copy()) or adapt(history))
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(5):
        obs, action, next_obs = (generator.standard_normal(size) for size in (OBS, ACT, OBS))
        rows.append(np.concatenate([[1.0], obs, action, next_obs - obs]))
        estimator.update(obs, action, next_obs)
    np.testing.assert_allclose(shown[0], np.concatenate([np.zeros(2 * WIDTH), rows[0]]), rtol=1e-6)
    np.testing.assert_allclose(shown[-1], np.concatenate(rows[-WINDOW:]), rtol=1e-6)


def test_the_context_is_the_modules_answer_within_the_range_of_the_policy() -> None:
    estimator, obs = make(), np.zeros(OBS)
    assert (estimator.context(obs, None) == 1.0).all() and estimator.health().confidence == 0.0
    # Of three rows one holds -0.3: 1 - 0.1.
    feed(estimator, -0.3)
    np.testing.assert_allclose(estimator.context(obs, None), 0.9, rtol=1e-6)
    assert estimator.health().confidence == pytest.approx(1 / 3)
    for command, expected in ((-9.0, 0.0), (9.0, 1.3)):
        for _ in range(WINDOW):
            feed(estimator, command)
        assert (estimator.context(obs, None) == expected).all()
    assert estimator.health().confidence == 1.0


def test_the_residual_is_in_predicted_standard_deviations() -> None:
    # The world model expects no change with a standard deviation of 0.5; a change of 1 is two of them.
    estimator = make()
    for _ in range(10):
        feed(estimator, 0.5, change=1.0)
    assert estimator.health().residual == pytest.approx(2.0)


def test_reset_forgets_to_the_bit() -> None:
    estimator, fresh = make(), make()
    for _ in range(5):
        feed(estimator, 0.7, change=3.0)
    estimator.reset()
    assert (estimator.context(np.zeros(OBS), None) == 1.0).all()
    feed(estimator, -0.2)
    feed(fresh, -0.2)
    assert np.array_equal(estimator.context(np.zeros(OBS), None), fresh.context(np.zeros(OBS), None))
    assert estimator.health() == fresh.health()


@pytest.mark.parametrize("answer", [np.nan, np.inf])
def test_a_module_that_gives_no_number_is_nominal_and_says_so(answer: float) -> None:
    broken = False
    estimator = make(module=lambda history: np.where(broken, answer, adapt(history)))
    feed(estimator, -0.3)
    broken = True
    feed(estimator, -0.3)
    assert (estimator.context(np.zeros(OBS), None) == 1.0).all() and estimator.health().confidence == 0.0
    broken = False
    feed(estimator, -0.3)
    np.testing.assert_allclose(estimator.context(np.zeros(OBS), None), 0.7, rtol=1e-6)


def test_a_lost_transition_is_nominal_for_one_step_and_leaves_no_trace() -> None:
    estimator, other = make(), make()
    feed(estimator, -0.3)
    feed(estimator, np.nan)
    assert (estimator.context(np.zeros(OBS), None) == 1.0).all() and estimator.health().confidence == 0.0
    feed(estimator, -0.6)
    for command in (-0.3, -0.6):
        feed(other, command)
    assert np.array_equal(estimator.context(np.zeros(OBS), None), other.context(np.zeros(OBS), None))


def test_lanes_are_robots_alone() -> None:
    generator = np.random.default_rng(0)
    together, alone = make((3,)), [make() for _ in range(3)]
    for _ in range(2 * WINDOW):
        obs, action, next_obs = (generator.standard_normal((3, size)) for size in (OBS, ACT, OBS))
        valid = generator.random(3) < 0.7
        together.update(obs, action, next_obs, valid)
        for lane, estimator in enumerate(alone):
            estimator.update(obs[lane], action[lane], next_obs[lane], valid[lane])
        expected = np.array([estimator.context(obs[lane], None) for lane, estimator in enumerate(alone)])
        np.testing.assert_allclose(together.context(obs, None), expected, atol=1e-6)
        for whole, parts in zip(together.health(), zip(*(e.health() for e in alone), strict=True), strict=True):
            np.testing.assert_allclose(whole, parts)


@settings(max_examples=60)
@given(rows=arrays.arrays(np.float64, (10, 2 * OBS + ACT), elements=st.floats(width=64)))
def test_context_stays_in_range_whatever_comes(rows: np.ndarray) -> None:
    estimator = make()
    with np.errstate(all="ignore"):
        for row in rows:
            obs, action, next_obs = np.split(row, [OBS, OBS + ACT])
            estimator.update(obs, action, next_obs)
            context = estimator.context(next_obs, action)
            assert ((context >= 0.0) & (context <= 1.3)).all()
    assert estimator.history.shape == (WINDOW, WIDTH)  # type: ignore[attr-defined]


def test_it_does_not_run_without_its_module() -> None:
    with pytest.raises(UserError, match=r"needs a bundle with adaptation\.onnx"):
        make(module=None)


def module_graph(weights: np.ndarray = WEIGHTS) -> bytes:
    """1 + history WEIGHTS."""
    nodes = [
        helper.make_node("MatMul", ["history", "weights"], ["sum"]),
        helper.make_node("Add", ["sum", "one"], ["estimate"]),
    ]
    flat = weights.reshape(-1, ACT)
    return graph({"history": len(flat)}, {"estimate": ACT}, nodes, {"weights": flat, "one": np.ones(ACT)})


def write(path: Path, module: bytes | None, estimator: str = "history", window: int = WINDOW) -> Path:
    """A bundle of the leg whose policy, tanh(obs GAIN) context, reads two gains."""
    nodes = [
        helper.make_node("MatMul", ["obs", "gain"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["unit"]),
        helper.make_node("Mul", ["unit", "context"], ["action"]),
    ]
    chosen = {"window": window} if estimator == "history" else {}
    bounds: dict[str, Any] = {"nominal": (1.0,) * ACT, "low": (0.0,) * ACT, "high": (1.3,) * ACT}
    context = ContextSpec(kind="actuator_gain", dim=ACT, estimator=estimator, settings=chosen, **bounds)
    generator = np.random.default_rng(0)
    rows = golden()
    rows["context"] = generator.uniform(0, 1.3, (64, ACT)).astype(np.float32)
    rows["action"] = np.tanh(rows["obs"] @ GAIN) * rows["context"]
    rows["delta"] = golden()["delta"] + (rows["action"] - golden()["action"]) @ PUSH
    if module is not None:
        rows["history"] = generator.standard_normal((64, WINDOW * WIDTH)).astype(np.float32)
        rows["estimate"] = adapt(rows["history"])
    bundle_path = path / "leg.bundle"
    write_bundle(
        bundle_path,
        policy=graph({"obs": OBS, "context": ACT}, {"action": ACT}, nodes, {"gain": GAIN}),
        spec=spec().model_copy(update={"context": context}),
        golden=rows,
        dynamics=dynamics_graph(),
        parts={} if module is None else {"adaptation.onnx": module},
    )
    return bundle_path


def test_the_controller_runs_the_bundles_module(tmp_path: Path) -> None:
    bundle = Bundle.load(write(tmp_path, module_graph()))
    controller, obs = Controller(bundle), np.full(OBS, -0.1)
    commands = [controller.step(0.02 * step, obs) for step in range(5)]
    np.testing.assert_allclose(commands[0].context, 1.0)
    for step in range(1, 5):
        assert commands[step].reason == 0
        seen = [command.action for command in commands[:step]][-WINDOW:]
        expected = 1.0 + np.sum(seen, axis=0) / WINDOW
        np.testing.assert_allclose(commands[step].context, expected, atol=1e-5)
        np.testing.assert_allclose(commands[step].action, np.tanh(obs @ GAIN) * expected, atol=1e-5)


def test_inspect_names_estimator_and_module(tmp_path: Path) -> None:
    output = io.StringIO()
    show(Bundle.load(write(tmp_path, module_graph())), Console(width=120, file=output))
    assert "history, window=3" in output.getvalue() and "adaptation.onnx" in output.getvalue()


def test_a_module_that_is_missing_or_altered_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, module_graph())
    (path / "adaptation.onnx").write_bytes(module_graph(2 * WEIGHTS))
    with pytest.raises(UserError, match=r"adaptation\.onnx is not the file that was written"):
        Bundle.load(path)
    (path / "adaptation.onnx").unlink()
    with pytest.raises(UserError, match=r"adaptation\.onnx is missing"):
        Bundle.load(path)


def test_a_bundle_without_the_module_that_it_needs_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lists no adaptation\.onnx"):
        write(tmp_path, None)
    assert Bundle.load(write(tmp_path, None, estimator="actuator_gain")).adapt is None


def test_a_module_that_answers_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not reproduce the golden rows of 'estimate'"):
        write(tmp_path, module_graph(1.1 * WEIGHTS))


def test_a_module_for_another_window_is_refused(tmp_path: Path) -> None:
    # Four rows of 13 numbers are 52; the module reads 39.
    with pytest.raises(UserError, match=r"history \(batch, 39\), but its description asks for history \(batch, 52\)"):
        write(tmp_path, module_graph(), window=4)
