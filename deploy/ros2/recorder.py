"""Records topics in a bag, in a process of its own; `surefoot collect bag=FOLDER` makes a data set of it.

Topics: in joint_states, imu, odom, cmd_vel, policy/commands, policy/context, commands, /diagnostics and, to which
robot.launch.py has the safety node write in the place of commands, /forward_command_controller/commands; or those that
the parameter topics names.

The robot never waits for a recorder: it takes messages best effort. What came in a second is written in the order in
which it was sent, so that a crash costs a second at most.
"""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy

from adapters.datasets.rosbag import TYPES
from adapters.errors import UserError
from deploy.ros2.bag import Bag
from deploy.ros2.node import declare, run, steady_clock

FLUSH_PERIOD = 1.0
# Deep enough for the time in which a disk is busy.
QUEUE = QoSProfile(depth=1000, reliability=QoSReliabilityPolicy.BEST_EFFORT)
OBSERVED = ["joint_states", "imu", "odom", "cmd_vel"]
ANSWERED = ["policy/commands", "policy/context", "commands", "/forward_command_controller/commands", "/diagnostics"]
TOPICS = [*OBSERVED, *ANSWERED]
KNOWN = {**TYPES, "context": TYPES["commands"]}


def parse_topics(entries: list[str]) -> dict[str, str]:
    """Return the message type of each topic.

    Args:
        entries: TOPIC, where its last name tells the type as in `TOPICS`, or TOPIC:TYPE.

    Raises:
        UserError: an entry does not tell its type.
    """
    topics = {}
    for entry in filter(None, entries):
        topic, _, kind = entry.partition(":")
        topics[topic] = kind or KNOWN.get(topic.rpartition("/")[2], "")
        if len(topics[topic].split("/")) != 3:
            raise UserError(
                f"topics has the entry '{entry}'; write TOPIC:TYPE, for example scan:sensor_msgs/msg/LaserScan."
            )
    if not topics:
        raise UserError("topics names nothing to record.")
    return topics


class RecorderNode(Node):
    """Writes every message of its topics to a bag, until it is closed or the disk does not take them.

    Raises:
        UserError: a parameter makes no sense, or the bag cannot be made.
    """

    def __init__(self) -> None:
        super().__init__("recorder")
        define = functools.partial(declare, self, read_only=True)
        define("output", "", "folder of the bag, which must not be there yet; empty: recording-DATE-TIME")
        define("storage", "mcap", "mcap or sqlite3")
        define("topics", TOPICS, "what to record: TOPIC, or TOPIC:TYPE")
        values = {name: self.get_parameter(name).value for name in ("output", "storage", "topics")}
        if values["storage"] not in ("mcap", "sqlite3"):
            raise UserError(f"storage={values['storage']} is no form of a bag; choose mcap or sqlite3.")
        topics = {self.resolve_topic_name(name): kind for name, kind in parse_topics(values["topics"]).items()}
        path = Path(values["output"] or time.strftime("recording-%Y%m%d-%H%M%S"))
        self._bag = Bag(path, values["storage"], topics)
        for topic, kind in topics.items():
            callback = functools.partial(self._keep, topic)
            self.create_subscription(message_type(kind), topic, callback, QUEUE, raw=True)
        self.create_timer(FLUSH_PERIOD, self._bag.flush, clock=steady_clock())
        self.get_logger().info(f"records {len(topics)} topics in {path}")

    def _keep(self, topic: str, data: bytes, info: Mapping[str, int]) -> None:
        # When it was sent tells which command followed which observation; when it came to be read here does not.
        self._bag.add(info["source_timestamp"] or time.time_ns(), topic, data)

    def close(self) -> None:
        """Close the bag."""
        self._bag.close()
        self.get_logger().info(f"recorded {self._bag.count} messages in {self._bag.path}")


def message_type(name: str) -> Any:
    """Return the class of a message type such as sensor_msgs/msg/Imu.

    Raises:
        UserError: it is not installed.
    """
    package, folder, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{folder}"), kind)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"there is no message type {name} here; install its package, or leave the topic out."
        ) from error


def main() -> int:
    """Run the node; returns the exit code."""
    return run(RecorderNode)


if __name__ == "__main__":
    sys.exit(main())
