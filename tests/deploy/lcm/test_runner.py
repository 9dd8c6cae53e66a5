"""The runner as a process, over real LCM: what it answers, refuses and says."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from leg import ACT, DT, act, robot

from deploy.controller import State
from deploy.lcm.channels import NS, OBSERVATION, ORDER
from deploy.lcm.generated.surefoot import order_t
from deploy.lcm.order import give
from deploy.lcm.order import main as order
from deploy.lcm.runner import main

if TYPE_CHECKING:
    from conftest import Peer, Process

WriteBundle = Callable[..., Path]
StartRunner = Callable[..., "Process"]
OBSERVED = np.array([0.1, -0.2, 0.3, -0.4, 0.5])
# Long enough for a busy machine not to be taken for a silent robot.
PATIENT = ("--timeout", "30")


def test_answers_by_name_whatever_the_order(write: WriteBundle, start_runner: StartRunner, peer: Peer) -> None:
    start_runner(write(context=False), *PATIENT)
    shuffled = [3, 0, 4, 2, 1]
    peer.send(7, OBSERVED[shuffled], stamp=time.time_ns(), names=[peer.names[i] for i in shuffled])
    command = peer.answer(7)
    assert (command.joints, command.size, command.state) == (["hip", "knee"], ACT, State.RUNNING)
    assert (command.reason, command.context_size) == ("", 0)
    np.testing.assert_allclose(command.action, act(OBSERVED, None), rtol=1e-6)


def test_command_has_the_stamp_of_what_it_answers_and_the_context(
    write: WriteBundle, start_runner: StartRunner, peer: Peer
) -> None:
    start_runner(write(), *PATIENT)
    stamp = time.time_ns()
    peer.send(0, OBSERVED, stamp)
    command = peer.answer(0)
    assert command.stamp == stamp
    assert command.context == (1.0,) * 5
    peer.send(1, OBSERVED)
    assert peer.answer(1).sequence == command.sequence + 1


@pytest.mark.parametrize(
    ("values", "names", "reason"),
    [
        ([0.1, np.nan, 0.3, 0.4, 0.5], robot().observation_names, "not finite (hip_position)"),
        ([0.1, 0.2, 0.3, 0.4], robot().observation_names[:4], "not finite (knee_velocity)"),
        ([0.1] * 5, (*robot().observation_names[:4], "ankle_velocity"), "not finite (knee_velocity)"),
        ([], (), "not finite (pitch, hip_position"),
    ],
)
def test_bad_observation_gets_the_safe_command_and_its_reason(
    write: WriteBundle, start_runner: StartRunner, peer: Peer, values: list[float], names: list[str], reason: str
) -> None:
    start_runner(write(), *PATIENT)
    peer.send(0, OBSERVED)
    assert np.any(peer.answer(0).action)
    peer.send(1, values, names=names or ["nothing"][: len(values)])
    command = peer.answer(1)
    assert (command.state, command.action) == (State.HOLD, (0.0, 0.0))
    assert reason in command.reason
    peer.send(2, OBSERVED)
    assert peer.answer(2).state == State.RUNNING


def test_repeated_late_and_future_observations_get_no_command_of_their_own(
    write: WriteBundle, start_runner: StartRunner, peer: Peer
) -> None:
    runner = start_runner(write(), *PATIENT)
    now = time.time_ns()
    peer.send(4, OBSERVED, now)
    first = peer.answer(4)
    peer.send(4, 2 * OBSERVED, now)  # came before: the same command again, and the controller makes no step
    again = peer.answer(4)
    assert (again.sequence, again.action) == (first.sequence, first.action)
    peer.send(3, OBSERVED, now - NS // 1000)
    peer.send(5, OBSERVED, now + 60 * NS)
    peer.send(6, OBSERVED, now - 60 * NS)
    peer.link.publish(OBSERVATION, b"no observation")
    peer.send(7, OBSERVED)
    assert peer.answer(7).sequence == first.sequence + 1
    assert runner.stop() == 0
    said = runner.says("answered")
    assert "2 observations answered" in said
    for line in (
        "1 messages refused: the message came before",
        "2 messages refused: a later message came before this one",
        "1 messages refused: the stamp lies in the future",
        "1 messages refused: the message is no observation",
    ):
        assert line in said


def test_stale_observation_is_refused(write: WriteBundle, start_runner: StartRunner, peer: Peer) -> None:
    runner = start_runner(write(), *PATIENT)
    peer.send(0, OBSERVED, time.time_ns() - 31 * NS)
    peer.send(1, OBSERVED)
    assert peer.answer(1).state == State.RUNNING
    runner.stop()
    said = runner.says("answered")
    assert "1 observations answered" in said
    assert "1 messages refused: the latest good message is too old" in said


def test_silence_is_answered_by_holds_then_a_stop_until_the_order_to_clear(
    url: str, write: WriteBundle, start_runner: StartRunner, peer: Peer
) -> None:
    start_runner(write(), "--timeout", "0.1", "--max-hold", "5", "--clock", "own")
    stamp, sent = 123 * NS, time.monotonic()
    peer.send(0, OBSERVED, stamp)
    assert np.any(peer.answer(0).action)
    hold = peer.wait_for(lambda command: command.state == State.HOLD)
    assert time.monotonic() - sent > 0.1
    assert (hold.observation, hold.action, hold.reason) == (-1, (0.0, 0.0), "there was no fresh observation")
    assert hold.stamp > stamp + 0.099 * NS
    stopped = peer.wait_for(lambda command: command.state == State.STOPPED)
    # 5 bad steps in a row stop the robot: the first 0.1 s after the observation, each later one a control period on.
    assert stopped.sequence == hold.sequence + 4
    assert stopped.stamp > stamp + (0.1 + 3.99 * DT) * NS
    peer.send(1, OBSERVED, stamp + NS)
    assert peer.answer(1).state == State.STOPPED
    # On a busy machine the test itself may be silent for too long after the order, so it gives it again.
    for sequence in range(2, 100):
        give(order_t.CLEAR, url)
        peer.send(sequence, OBSERVED, stamp + sequence * NS)
        if peer.answer(sequence).state == State.RUNNING:
            return
    raise AssertionError("the order to clear was not heard")


def test_orders_start_and_stop(url: str, write: WriteBundle, start_runner: StartRunner, peer: Peer) -> None:
    start_runner(write(), "--wait-for-start", *PATIENT)
    peer.link.publish(ORDER, b"\x00")
    peer.send(0, OBSERVED)
    assert peer.answer(0).state == State.IDLE
    assert order(["start", "--url", url]) == 0
    peer.send(1, OBSERVED)
    assert peer.answer(1).state == State.RUNNING
    assert order(["stop", "--url", url]) == 0
    peer.send(2, OBSERVED)
    command = peer.answer(2)
    assert (command.state, command.action) == (State.STOPPED, (0.0, 0.0))
    assert command.reason == "stopped on request until clear()"
    assert order(["stop", "--url", "carrier-pigeon://"]) == 2


def test_dry_run_computes_and_sends_nothing(write: WriteBundle, start_runner: StartRunner, peer: Peer) -> None:
    runner = start_runner(write(), "--dry-run", *PATIENT)
    for sequence in range(3):
        peer.send(sequence, OBSERVED)
        peer.listen(0.05)
    runner.says("runner: running")
    assert runner.stop() == 0
    assert not peer.listen(0.05)
    assert " observations answered" in runner.says("answered")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_brings_the_robot_to_the_safe_command(
    write: WriteBundle, start_runner: StartRunner, peer: Peer, how: signal.Signals
) -> None:
    # 4 per second, so 0.08 a control period: the way back takes several.
    runner = start_runner(write(context=False, rate=4.0), "--stop-time", "0.1", *PATIENT)
    for sequence in range(8):
        peer.send(sequence, OBSERVED)
        last = peer.answer(sequence)
    assert runner.stop(how) == 0
    commands = peer.listen(0.1)
    assert {command.state for command in commands} == {State.STOPPED}
    path = np.array([last.action, *(command.action for command in commands)])
    assert len(path) > 4
    assert np.abs(np.diff(path, axis=0)).max() < 0.08 + 1e-9
    assert commands[-1].action == (0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.bundle"], "there is no bundle nowhere.bundle"),
        (["{bundle}/policy.onnx"], "policy.onnx is a lone file, which cannot be checked"),
        (["{bundle}", "--url", "carrier-pigeon://"], "there is no LCM network carrier-pigeon://"),
        (["{bundle}", "--timeout", "0"], "stale_timeout=0.0 is no time to wait"),
        (["{bundle}", "--soft-start", "-1"], "soft_start=-1.0 is no duration"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(
    write: WriteBundle, url: str, capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    bundle = str(write())
    given = [argument.format(bundle=bundle) for argument in arguments]
    assert main(["--url", url, *given]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("surefoot: ")]
    assert len(lines) == 1
    assert sentence in lines[0]
