"""`mujoco_node`: a MuJoCo robot behind ROS 2's topics; `deploy.ros2.plant_node.PlantNode` says how it behaves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deploy.ros2.node import declare, run
from deploy.ros2.plant_node import PlantNode
from sim.environments import make_environment
from sim.mujoco_plant import MujocoPlant, find_world


def make_plant(node: Any) -> MujocoPlant:
    """Make the robot that the parameters of a rclpy node describe."""
    declare(node, "env", "halfcheetah", "a task of configs/env")
    declare(node, "at_step", -1, "control step at which the perturbation begins, -1 as the suite says")
    declare(node, "seed", 0, "seed of the starts")
    declare(node, "record", "", "npz file for the last episode, empty for none")
    place, at_step, record = (node.get_parameter(name).value for name in ("perturbation", "at_step", "record"))
    environment = make_environment(node.get_parameter("env").value)
    world = find_world(place, at_step if at_step >= 0 else None, environment)
    return MujocoPlant(environment, world, node.get_parameter("seed").value, Path(record) if record else None)


def main() -> int:
    """Run the node until its episode is over."""
    return run(lambda: PlantNode("mujoco_node", make_plant))


if __name__ == "__main__":
    sys.exit(main())
