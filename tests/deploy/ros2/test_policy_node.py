"""The policy node as a process, over real DDS."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hardware import MAPS, PERIOD, START, Hardware, Process, in_time, move, stood, write_leg
from keypair import write_pair
from lifecycle_msgs.msg import Transition
from recorded import record
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from deploy.bundle import Bundle
from deploy.controller import Controller, State
from deploy.ros2.messages import read_context
from deploy.ros2.node import LATCHED
from deploy.signature import read_signing_key

Begin = Callable[..., None]
REST = np.zeros(2)


@pytest.fixture(scope="module")
def policy(hardware: Hardware, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hardware]:
    """The hardware, and beside it a policy node that waits to be configured."""
    with Process(tmp_path_factory.mktemp("policy") / "log", "policy_node", autostart=False, **MAPS):
        yield hardware


@pytest.fixture
def begin(policy: Hardware, bundle: Path) -> Begin:
    """`begin(**parameters)` starts an episode, by default in simulated time, where nothing happens unasked."""
    defaults = {"bundle": str(bundle), "public_key": "", "use_sim_time": True, "stop_time": 0.0, "dry_run": False}

    def configure(**parameters: object) -> None:
        assert policy.configure(**{**defaults, **parameters})
        policy.activate()

    return configure


def test_commands_and_contexts_are_the_controllers_to_the_bit(policy: Hardware, bundle: Path, begin: Begin) -> None:
    begin()
    controller, values = Controller(Bundle.load(bundle)), START
    for step in range(40):
        expected = controller.step(PERIOD * step, values)
        assert policy.answer(PERIOD * step, values).tobytes() == expected.action.tobytes()
        values = move(values, expected.action)
    names = controller.names
    policy.wait(lambda: len(policy.contexts) == 40, "the contexts")
    assert read_context(policy.contexts[-1]) == dict(zip(names, expected.context.tolist(), strict=True))
    assert (expected.context != 1).any(), "nothing was inferred"


def test_a_recorded_run_is_replayed_to_the_bit(policy: Hardware, begin: Begin, write: Callable[..., Path]) -> None:
    path = write(rate=50.0)
    moments = record(Bundle.load(path))
    # The run holds what can go wrong, and it teaches the estimator something.
    assert {int(moment.command.state) for moment in moments} == {State.RUNNING, State.HOLD}
    assert np.ptp([moment.command.context for moment in moments], axis=0).max() > 0.05
    begin(bundle=str(path))
    for stamp, values, command in moments:
        assert policy.answer(stamp * 1e-9, values).tobytes() == command.action.tobytes()
    policy.wait(lambda: len(policy.contexts) == len(moments), "the contexts")
    contexts = [np.array(message.data).tobytes() for message in policy.contexts]
    assert contexts == [moment.command.context.tobytes() for moment in moments]


def test_what_the_robot_does_on_its_own_teaches_nothing(policy: Hardware, begin: Begin) -> None:
    begin()
    passing = policy.node.create_publisher(Bool, "safety/passing", LATCHED)
    policy.wait(passing.get_subscription_count, "the policy")
    steps, values = itertools.count(), START

    def go_on(count: int) -> bool:
        """Let the leg be driven for so many control periods; whether anything was learned."""
        nonlocal values
        for _ in range(count):
            values = move(values, policy.answer(PERIOD * next(steps), values))
        policy.wait(lambda: len(policy.contexts) == len(policy.commands), "the contexts")
        return any(number != 1 for number in policy.contexts[-1].data)

    passing.publish(Bool(data=False))
    policy.spin(0.2)
    assert not go_on(12)
    passing.publish(Bool(data=True))
    policy.spin(0.2)
    assert go_on(12)
    policy.node.destroy_publisher(passing)


def test_a_bad_observation_never_reaches_the_policy(policy: Hardware, bundle: Path, begin: Begin) -> None:
    begin()
    controller = Controller(Bundle.load(bundle))
    good = controller.step(0.0, START).action
    assert (policy.answer(0.0, START) == good).all()
    names = ["knee", "left_hip"]
    bad = [
        (np.array([0.3, np.nan, -0.4, 0, 0]), {}),
        (START, {"name": ["left_hip", "ankle"]}),
        (START, {"name": ["knee"], "position": [0.1], "velocity": [0.1]}),
        (START, {"name": names, "position": [0.1]}),
        (START, {"name": ["knee", "knee"]}),
    ]
    for step, (values, changes) in enumerate(bad, start=1):
        assert (policy.answer(PERIOD * step, values, **changes) == REST).all()
    # Neither of these is answered: 0.2 s was before 0.5 s, and 0.5 s was there already.
    for stamp, fault in ((0.2, "a later message came before this one"), (0.5, "the message came before")):
        policy.observe(stamp, START)
        policy.status("policy", **{f"fault: {fault}": 1})
    assert (policy.answer(0.6, START) != REST).all()
    assert len(policy.commands) == 1 + len(bad) + 1
    faults = policy.status("policy", steps=7).values
    assert {name: int(count) for name, count in faults.items() if name.startswith("fault: ")} == {
        "fault: the observation is not finite": 1,
        "fault: joints are missing or have other names": 2,
        "fault: an array has not one number for each joint": 1,
        "fault: a joint is named twice": 1,
        "fault: a later message came before this one": 1,
        "fault: the message came before": 1,
    }


def test_silence_brings_the_robot_to_rest_in_time(policy: Hardware, begin: Begin) -> None:
    begin(use_sim_time=False, stale_timeout=3 * PERIOD)

    def moves() -> bool:
        return bool(policy.commands) and (policy.commands[-1].action != REST).all()

    def delay() -> float:
        """Drive the robot, fall silent, and return how long its last command stands."""
        policy.trigger("policy/clear")  # on a busy machine it may have been held for too long
        policy.keep_observing(moves)
        policy.wait_for_rest(policy.commands)
        return stood(policy.commands)

    assert in_time(delay, (3 + 2) * PERIOD)
    policy.observe(time.time() + 5, START)
    policy.status("policy", **{"fault: the stamp lies in the future": 1})
    assert not moves()


def test_estop_holds_until_clear(policy: Hardware, begin: Begin) -> None:
    begin()
    assert (policy.answer(0.0, START) != REST).all()
    assert policy.trigger("policy/estop")
    assert policy.status("policy", state="stopped").level == 2
    assert (policy.answer(0.1, START) == REST).all()
    assert (policy.answer(0.2, START) == REST).all()
    assert policy.trigger("policy/clear")
    assert (policy.answer(0.3, START) != REST).all()


def test_an_estop_outlives_deactivation(policy: Hardware, begin: Begin) -> None:
    begin()
    assert policy.trigger("policy/estop")
    assert policy.transition(Transition.TRANSITION_DEACTIVATE)
    policy.activate()
    assert (policy.answer(0.0, START) == REST).all()


def test_the_context_can_be_left_out_and_forgotten(policy: Hardware, bundle: Path, begin: Begin) -> None:
    begin()
    controller, steps, values = Controller(Bundle.load(bundle)), itertools.count(), START

    def go_on() -> np.ndarray:
        """Go on by a control period; return the context, which has to be that of a controller asked for the same."""
        nonlocal values
        before, time = len(policy.contexts), PERIOD * next(steps)
        expected = controller.step(time, values)
        policy.observe(time, values)
        values = move(values, expected.action)
        policy.wait(lambda: len(policy.contexts) > before, "a context")
        assert list(policy.contexts[before].data) == expected.context.tolist()
        return expected.context

    assert ([go_on() for _ in range(12)][-1] != 1).any()
    controller.adapt = False
    assert policy.call(SetBool, "policy/adapt", SetBool.Request(data=False)).success
    assert (go_on() == 1).all()
    controller.adapt = True
    assert policy.call(SetBool, "policy/adapt", SetBool.Request(data=True)).success
    assert (go_on() != 1).any()
    controller.reset_context()
    assert policy.trigger("policy/reset_context")
    next(steps)  # a period without an observation, so that what comes after it teaches nothing
    assert (go_on() == 1).all()


def test_deactivation_brings_the_robot_to_rest_smoothly(policy: Hardware, bundle: Path, begin: Begin) -> None:
    begin(stop_time=3 * PERIOD)
    controller = Controller(Bundle.load(bundle), stop_time=3 * PERIOD)
    for step in range(4):
        assert (policy.answer(PERIOD * step, START) == controller.step(PERIOD * step, START).action).all()
    assert policy.transition(Transition.TRANSITION_DEACTIVATE)
    controller.stop()
    expected = [controller.hold().action for _ in range(3)]
    assert (expected[0] != REST).all() and (expected[2] == REST).all()
    policy.wait(lambda: len(policy.commands) == 4 + 3, "the way to rest")
    assert all((got.action == wanted).all() for got, wanted in zip(policy.commands[4:], expected, strict=True))
    assert policy.lifecycle() == "inactive"
    policy.activate()  # another episode, whose time begins anew
    assert (policy.answer(0.0, START) != REST).all()


def test_a_bundle_that_cannot_be_trusted_is_refused(policy: Hardware, bundle: Path, tmp_path: Path) -> None:
    private, public = write_pair(tmp_path)
    signed = write_leg(tmp_path / "signed.bundle", signing_key=read_signing_key(private))
    for sentence, parameters in (
        ("is not signed", {"public_key": str(public)}),
        ("rate=5 Hz, but the bundle acts at 10 Hz", {"rate": 5.0}),
        ("but the bundle commands effort", {"command_interface": "position"}),
        ("there is no bundle nowhere", {"bundle": "nowhere"}),
    ):
        accepted = {"bundle": str(bundle), "public_key": "", "rate": 10.0, "command_interface": "effort"}
        policy.statuses.clear()
        assert not policy.configure(**{**accepted, **parameters})
        assert policy.lifecycle() == "unconfigured"
        assert policy.status("policy", text=sentence).level == 2
        assert not policy.transition(Transition.TRANSITION_ACTIVATE)
    assert policy.configure(**{**accepted, "bundle": str(signed), "public_key": str(public)})
    assert not any(policy.set(soft_start=1.0)), "a parameter of a configured node was changed"
    assert policy.status("policy", lifecycle="inactive").values["signed by"] != "None"


def test_what_runs_is_what_was_loaded(policy: Hardware, bundle: Path, begin: Begin, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "leg.bundle")
    begin(bundle=str(copy))
    controller = Controller(Bundle.load(bundle))
    assert (policy.answer(0.0, START) == controller.step(0.0, START).action).all()
    (copy / "policy.onnx").write_bytes(b"altered")
    assert (policy.answer(0.1, -START) == controller.step(0.1, -START).action).all()
    assert not policy.configure()
    policy.status("policy", text="SHA-256 differs")


def test_a_dry_run_sends_no_command(policy: Hardware, begin: Begin) -> None:
    begin(dry_run=True)
    policy.observe(0.0, START)
    policy.wait(lambda: policy.contexts, "the context")
    policy.status("policy", steps=1, dry_run=True)
    assert not policy.commands
