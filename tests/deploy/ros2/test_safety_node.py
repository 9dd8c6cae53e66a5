"""The safety node as a process, over real DDS."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hardware import PERIOD, Hardware, Process, in_time, robot, stood
from keypair import write_pair
from rclpy.publisher import Publisher
from std_msgs.msg import Bool, Float64MultiArray

from adapters.errors import UserError
from adapters.files import write_json
from deploy.ros2.messages import command_message
from deploy.ros2.node import LATCHED, LATEST
from deploy.ros2.safety_node import read_robot, source_of
from deploy.signature import read_signing_key, sign

REST = np.zeros(2)
GOOD = np.array([0.7, -0.3])
TIMEOUT = 0.5


@pytest.fixture(scope="module")
def safety(hardware: Hardware, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hardware]:
    """The hardware, and before it a safety node."""
    with Process(tmp_path_factory.mktemp("safety") / "log", "safety_node", bundle=bundle, timeout=TIMEOUT):
        hardware.wait(lambda: hardware.passed, "the safe command of a safety node that hears nothing")
        yield hardware


@pytest.fixture
def policy(safety: Hardware) -> Iterator[Publisher]:
    """What a policy sends commands with; before it nothing was sent for long enough."""
    output = connect(safety)
    at_rest(safety)
    yield output
    safety.node.destroy_publisher(output)


def connect(safety: Hardware) -> Publisher:
    output = safety.node.create_publisher(Float64MultiArray, "policy/commands", LATEST)
    safety.wait(output.get_subscription_count, "the safety node")
    return output


def at_rest(safety: Hardware) -> None:
    """Wait for a safe command that is yet to come."""
    before = len(safety.passed)
    safety.wait(lambda: len(safety.passed) > before and (safety.passed[-1].action == REST).all(), "the safe command")


def passes(safety: Hardware, output: Publisher, command: np.ndarray) -> None:
    """Send a command until the robot gets it."""

    def sent() -> bool:
        output.publish(command_message(command))
        safety.spin(0.02)
        return (safety.passed[-1].action == command).all()

    safety.wait(sent, "the command")


def test_good_commands_pass_to_the_bit(safety: Hardware, policy: Publisher) -> None:
    passes(safety, policy, GOOD)
    for step in range(20):
        command = GOOD * np.sin(1.0 + step)
        policy.publish(command_message(command))
        safety.wait(lambda sent=command: safety.passed[-1].action.tobytes() == sent.tobytes(), "the command")


def test_silence_stops_the_robot_in_time(safety: Hardware, policy: Publisher) -> None:
    def delay() -> float:
        passes(safety, policy, GOOD)
        safety.wait_for_rest(safety.passed)
        return stood(safety.passed)

    assert in_time(delay, TIMEOUT + 2 * PERIOD)


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ([0.7, np.nan], "the command is not finite"),
        ([0.7], "the command is not an array of the robot's size"),
        ([0.7, 3.1], "the command is out of the robot's range"),
    ],
)
def test_a_bad_command_stops_the_robot_at_once(
    safety: Hardware, policy: Publisher, command: list[float], refusal: str
) -> None:
    safety.statuses.clear()

    def delay() -> float:
        passes(safety, policy, GOOD)
        policy.publish(Float64MultiArray(data=command))
        safety.wait_for_rest(safety.passed)
        return stood(safety.passed)

    assert in_time(delay, TIMEOUT)  # which silence does not do
    assert safety.status("safety", text=refusal).level == 2
    passes(safety, policy, GOOD)


def test_a_command_that_was_made_long_ago_is_refused(safety: Hardware, policy: Publisher) -> None:
    passes(safety, policy, GOOD)
    safety.spin(TIMEOUT + 0.2)  # so that what comes next was made after what came before
    for age, refusal in ((TIMEOUT + 0.1, "the latest good message is too old"), (-1.0, "lies in the future")):
        before = len(safety.passed)
        safety.statuses.clear()
        policy.publish(command_message(GOOD, made=time.time_ns() - round(age * 1e9)))
        safety.status("safety", text="safe command")
        safety.wait(lambda refusal=refusal: any(refusal in key for key in refusals(safety)), refusal)
        assert all((command.action == REST).all() for command in safety.passed[before:])


def refusals(safety: Hardware) -> list[str]:
    """What the safety node says that it refused."""
    return [pair.key for status in safety.statuses if status.name == "safety" for pair in status.values]


def test_a_command_that_comes_twice_keeps_nothing_alive(safety: Hardware, policy: Publisher) -> None:
    passes(safety, policy, GOOD)
    command = command_message(GOOD, made=time.time_ns())

    def again() -> bool:
        policy.publish(command)
        safety.spin(PERIOD / 5)
        return bool((safety.passed[-1].action == REST).all())

    safety.wait(again, "the safe command")


def test_the_policy_is_told_whether_it_drives(safety: Hardware, policy: Publisher) -> None:
    told: list[bool] = []
    safety.node.create_subscription(Bool, "safety/passing", lambda message: told.append(message.data), LATCHED)
    passes(safety, policy, GOOD)
    safety.wait(lambda: told and told[-1], "the news")
    at_rest(safety)
    safety.wait(lambda: not told[-1], "the news")
    # Who comes later hears it too.
    late: list[bool] = []
    safety.node.create_subscription(Bool, "safety/passing", lambda message: late.append(message.data), LATCHED)
    safety.wait(lambda: late == [False], "the latest news")


def test_the_first_policy_keeps_the_robot_while_it_is_there(safety: Hardware, policy: Publisher) -> None:
    other = connect(safety)
    passes(safety, policy, GOOD)
    safety.statuses.clear()
    before = len(safety.passed)
    for _ in range(10):
        policy.publish(command_message(GOOD))
        other.publish(command_message(-GOOD))
        safety.spin(PERIOD / 2)
    assert all((command.action == GOOD).all() for command in safety.passed[before:])
    assert safety.status("safety", text="has 2 publishers").level == 1
    passes(safety, other, -GOOD)  # nothing comes from the first any more
    safety.node.destroy_publisher(other)


def test_estop_holds_until_clear(safety: Hardware, policy: Publisher) -> None:
    passes(safety, policy, GOOD)
    assert safety.trigger("safety/estop")
    at_rest(safety)
    for _ in range(5):
        policy.publish(command_message(GOOD))
        safety.spin(PERIOD / 2)
        assert (safety.passed[-1].action == REST).all()
    assert safety.trigger("safety/clear")
    passes(safety, policy, GOOD)


def test_the_robot_is_read_from_a_bundle_or_from_a_description(bundle: Path, tmp_path: Path) -> None:
    described = tmp_path / "leg.yaml"
    write_json(described, robot().model_dump(mode="json"))  # YAML holds all of JSON
    assert read_robot(str(bundle), "") == read_robot("", str(described)) == robot()
    # A description is read in the bundle's place.
    write_json(described, robot(rate=3.0).model_dump(mode="json"))
    assert read_robot(str(bundle), str(described)) == robot(rate=3.0)


def test_with_a_public_key_only_a_bundle_that_it_signed_is_read(bundle: Path, tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path)
    own = shutil.copytree(bundle, tmp_path / "leg.bundle")
    with pytest.raises(UserError, match="is not signed"):
        read_robot(str(own), "", str(public))
    sign(own, read_signing_key(secret))
    assert read_robot(str(own), "", str(public)) == robot()
    description = own / "bundle.json"
    description.write_text(description.read_text() + " ")
    with pytest.raises(UserError, match="was altered"):
        read_robot(str(own), "", str(public))


def test_a_description_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set the parameter bundle or robot"):
        read_robot("", "")
    path = tmp_path / "leg.yaml"
    for text, fault in (
        ("name: leg", "describes no robot: observations: Field required"),
        ("- leg", "describes no robot: the whole: Input should be"),
        ("{", "is no YAML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"leg\.yaml {fault}"):
            read_robot("", str(path))
    with pytest.raises(UserError, match="there is no file"):
        read_robot(str(tmp_path / "nowhere"), "")


def test_sources_are_told_apart_by_their_identity_or_not_at_all() -> None:
    told = {"publisher_gid": {"data": b"\x01\x02"}}
    assert source_of(told, publishers=2) == b"\x01\x02"
    assert source_of({}, publishers=1) is not None
    assert source_of({}, publishers=2) is None
