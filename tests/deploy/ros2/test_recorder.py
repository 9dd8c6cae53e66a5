"""The recorder as a process beside a robot's topics, and what is left of its bag whatever ends it."""

from __future__ import annotations

import resource
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from hardware import FIELD_MAP, JOINT_MAP, PERIOD, Hardware, Process, robot
from std_msgs.msg import Float64MultiArray

from adapters.datasets import LogLayout, TransitionDataset, load_dataset
from adapters.errors import UserError
from deploy.ros2.fields import ObservationReader
from deploy.ros2.inputs import Inputs
from deploy.ros2.messages import command_message, diagnostics_message, stamp
from deploy.ros2.node import LATEST
from deploy.ros2.recorder import message_type, parse_topics

STORAGES = ("mcap", "sqlite3")


class Scene:
    """A robot that is observed and commanded, whoever listens."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware, self.steps = hardware, 0
        generator = np.random.default_rng(1)
        self.seen = generator.uniform(-1, 1, (20_000, 5)).astype(np.float32)
        self.actions = generator.uniform(-1, 1, (20_000, 2)).astype(np.float32)
        node = hardware.node
        self.wanted, self.passed = (
            node.create_publisher(Float64MultiArray, topic, LATEST) for topic in ("policy/commands", "commands")
        )
        self.diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def meet(self, recorder: Process, bag: Path) -> Path:
        """Play until something is on the disk, and return the file. A recorder hears nothing before it has met DDS."""
        self.hardware.wait(lambda: "records 9 topics" in recorder.log.read_text(), "the recorder")
        (file,) = (file for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))
        empty = file.stat().st_size

        def recorded() -> bool:
            self.play(1)
            return file.stat().st_size > empty

        self.hardware.wait(recorded, "the first second on the disk")
        return file

    def play(self, steps: int) -> None:
        """Let some control periods pass, faster than real ones."""
        for k in range(self.steps, self.steps + steps):
            self.hardware.observe(PERIOD * (k + 1), self.seen[k].astype(float))
            self.wanted.publish(command_message(self.actions[k].astype(float)))
            self.passed.publish(command_message(self.actions[k].astype(float)))
            state = {"state": "running"}
            self.diagnostics.publish(diagnostics_message(stamp(0.0), "policy", "leg", b"\0", "running", state))
            self.hardware.spin(0.005)
        self.steps += steps

    def close(self) -> None:
        """Take the publishers down."""
        for publisher in (self.wanted, self.passed, self.diagnostics):
            self.hardware.node.destroy_publisher(publisher)

    def rows(self, path: Path) -> list[int]:
        """Read what was recorded, check that it is what happened, and return which steps it is.

        On a busy machine a recorder may miss a message, which then is a gap.
        """
        dataset, rows = load(path), []
        for observation, action, following in zip(
            dataset.observations, dataset.actions, dataset.next_observations, strict=True
        ):
            (step,) = np.flatnonzero((self.seen == observation).all(1))
            np.testing.assert_array_equal(action, self.actions[step])
            np.testing.assert_array_equal(following, self.seen[step + 1])
            rows.append(int(step))
        return rows


def load(path: Path) -> TransitionDataset:
    """Read a bag of the leg."""
    inputs = Inputs(ObservationReader(robot(), JOINT_MAP, FIELD_MAP), PERIOD, 3 * PERIOD)
    layout = LogLayout(robot().observation_names, robot().action.joints, inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(holds no rewards|was not closed)")
        return load_dataset(path, env="leg", control_dt=PERIOD, layout=layout)


@pytest.fixture
def scene(hardware: Hardware) -> Any:
    made = Scene(hardware)
    yield made
    made.close()


@pytest.mark.parametrize("storage", STORAGES)
def test_asked_to_end_it_closes_a_bag_that_is_what_happened(scene: Scene, tmp_path: Path, storage: str) -> None:
    with Process(tmp_path / "log", "recorder", output=tmp_path / "bag", storage=storage) as recorder:
        scene.meet(recorder, tmp_path / "bag")
        scene.play(30)
        scene.hardware.spin(0.2)
        assert recorder.end(signal.SIGINT) == 0
    rows = scene.rows(tmp_path / "bag")
    # What came after the last flush is there as well.
    assert max(rows) > scene.steps - 30
    assert len(rows) >= 20
    assert f"messages in {tmp_path / 'bag'}" in recorder.log.read_text()
    assert (tmp_path / "bag" / "metadata.yaml").exists()


@pytest.mark.parametrize("storage", STORAGES)
def test_killed_it_leaves_what_it_flushed(scene: Scene, tmp_path: Path, storage: str) -> None:
    with Process(tmp_path / "log", "recorder", output=tmp_path / "bag", storage=storage) as recorder:
        scene.meet(recorder, tmp_path / "bag")
        scene.play(10)
        recorder.end(signal.SIGKILL)
    assert scene.rows(tmp_path / "bag")


@pytest.mark.parametrize("storage", STORAGES)
def test_full_disk_ends_the_recorder_with_a_sentence_and_nobody_else(
    scene: Scene, tmp_path: Path, storage: str
) -> None:
    with Process(tmp_path / "log", "recorder", output=tmp_path / "bag", storage=storage) as recorder:
        file = scene.meet(recorder, tmp_path / "bag")
        # No root is needed to let a process believe that the disk is full.
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(recorder.child.pid, resource.RLIMIT_FSIZE, (file.stat().st_size + 32768, hard))

        def ended() -> bool:
            scene.play(1)
            return recorder.child.poll() is not None

        scene.hardware.wait(ended, "the end of the recorder")
        assert recorder.wait() == 2
    said = recorder.log.read_text()
    assert f"recording in {tmp_path / 'bag'} ended: " in said
    assert "Traceback" not in said
    rows = scene.rows(tmp_path / "bag")
    assert 0 < max(rows) < scene.steps - 1


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"storage": "tape"}, "storage=tape is no form of a bag; choose mcap or sqlite3."),
        ({"topics": "['whiskers']"}, "topics has the entry 'whiskers'; write TOPIC:TYPE"),
        ({"topics": "['']"}, "topics names nothing to record."),
        ({"topics": "['whiskers:my_msgs/msg/Whisker']"}, "the message type my_msgs/msg/Whisker cannot be recorded"),
        ({"output": "{folder}"}, "exists already"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, parameters: dict[str, str], sentence: str) -> None:
    chosen = {"output": str(tmp_path / "bag")} | parameters
    given = {name: value.format(folder=tmp_path) for name, value in chosen.items()}
    with Process(tmp_path / "log", "recorder", **given) as recorder:
        assert recorder.wait() == 2
    said = recorder.log.read_text()
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "bag").exists()


def test_topics_and_their_types() -> None:
    entries = ["imu", "left/joint_states", "/scan:sensor_msgs/msg/LaserScan", "", "policy/context"]
    assert parse_topics(entries) == {
        "imu": "sensor_msgs/msg/Imu",
        "left/joint_states": "sensor_msgs/msg/JointState",
        "/scan": "sensor_msgs/msg/LaserScan",
        "policy/context": "std_msgs/msg/Float64MultiArray",
    }
    assert message_type("sensor_msgs/msg/LaserScan").__name__ == "LaserScan"
    with pytest.raises(UserError, match="there is no message type my_msgs/msg/Whisker here"):
        message_type("my_msgs/msg/Whisker")
