"""The robot that faults are injected into: a leg of two joints, its bundle, and the leg as a process of its own.

`python -m sim.fault_plant ros2 BUNDLE` or `python -m sim.fault_plant lcm BUNDLE URL`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import UserError
from adapters.files import read_json
from deploy.bundle import write_bundle
from deploy.golden import GOLDEN_ROWS
from deploy.spec import SPEC, ActionSpec, BundleSpec, Limits, ObservationTerm, Provenance, RobotDescription

READY = "plant: ready"
HIGH = 2.0
GAIN = np.array([[-0.5, 0.2], [-0.8, 0.0], [0.0, -0.7], [-0.1, 0.0], [0.0, -0.1]], np.float32)
# Wind, of one speed for each number of the motion, so that no two observations are alike: rad/s.
WIND = np.array([1.0, 3.0, 4.1])


def describe_leg(hz: float) -> RobotDescription:
    """Return the leg's description, controlled at `hz`."""
    tilt = ObservationTerm(name="pitch", source="tilt", joints=("rooty",), unit="rad")
    terms = [
        ObservationTerm(name=f"{joint}_{quantity}", source=f"joint_{quantity}", joints=(joint,), unit=unit)  # type: ignore[arg-type]
        for quantity, unit in (("position", "rad"), ("velocity", "rad/s"))
        for joint in ("hip", "knee")
    ]
    action = ActionSpec(law="effort", joints=("hip", "knee"), low=(-HIGH, -HIGH), high=(HIGH, HIGH), unit="N m")
    limits = Limits(position={"hip": (-3.0, 3.0), "knee": (-3.0, 3.0)})
    return RobotDescription(name="leg", observations=(tilt, *terms), action=action, control_dt=1.0 / hz, limits=limits)


def write_leg(path: Path, hz: float, sign: float = 1.0) -> None:
    """Write a bundle for the leg: the command is 2 tanh(sign obs GAIN), in N m.

    Args:
        path: of the bundle.
        hz: control rate.
        sign: -1 for another policy, whose commands are never those of this one.
    """
    obs: np.ndarray = np.random.default_rng(0).standard_normal((GOLDEN_ROWS, len(GAIN))).astype(np.float32)
    spec = BundleSpec(
        env="leg",
        robot=describe_leg(hz),
        provenance=Provenance(algorithm="by-hand", config={}, dataset_sha256="0" * 64, seed=0),
    )
    action = HIGH * np.tanh(sign * obs @ GAIN)
    write_bundle(path, policy=_policy(sign), spec=spec, golden={"obs": obs, "action": action})


def _policy(sign: float) -> bytes:
    """Serialise the policy as an ONNX graph."""
    from onnx import TensorProto, helper, numpy_helper

    node, tensor = helper.make_node, helper.make_tensor_value_info
    constants = {"gain": sign * GAIN, "high": np.float32(HIGH)}
    graph = helper.make_graph(
        [
            node("MatMul", ["obs", "gain"], ["sum"]),
            node("Tanh", ["sum"], ["unit"]),
            node("Mul", ["unit", "high"], ["action"]),
        ],
        "leg",
        [tensor("obs", TensorProto.FLOAT, ["batch", GAIN.shape[0]])],
        [tensor("action", TensorProto.FLOAT, ["batch", GAIN.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model.SerializeToString()


class Leg:
    """Joints on springs in the wind; a `deploy.ros2.plant_node.Plant`.

    Args:
        robot: its description.

    Attributes:
        steps: control steps so far.
        ended: never.
        episode_return: there is no reward.
    """

    def __init__(self, robot: RobotDescription) -> None:
        self.robot, self.ended, self.episode_return = robot, False, 0.0
        self.reset()

    def reset(self) -> None:
        """Start from rest."""
        self.steps = 0
        self._position, self._velocity = np.array([0.3, -0.4]), np.zeros(2)

    def observe(self) -> np.ndarray:
        """Return pitch, positions and velocities, `(5,)`."""
        return np.array([0.2 * self._wind[0], *self._position, *self._velocity])

    def step(self, action: np.ndarray) -> None:
        """Hold an effort `(2,)` for one control period."""
        acceleration = action + self._wind[1:] - self._position - self._velocity
        self._velocity = self._velocity + self.robot.control_dt * acceleration
        self._position = self._position + self.robot.control_dt * self._velocity
        self.steps += 1

    @property
    def _wind(self) -> np.ndarray:
        return np.sin(WIND * (self.steps * self.robot.control_dt) + 1.0)

    def perturb(self, world: str) -> None:
        """Refuse every world but the original one."""
        if world != "none":
            raise UserError("the leg has no other worlds.")

    def status(self) -> Mapping[str, object]:
        """Return the number of steps."""
        return {"steps": self.steps}

    def close(self) -> None:
        """Do nothing."""


def main() -> int:
    """Run the leg in real time until a signal."""
    transport, bundle, *rest = sys.argv[1:]
    leg = Leg(BundleSpec.model_validate(read_json(Path(bundle) / SPEC)).robot)
    return _run_ros2(leg) if transport == "ros2" else _run_lcm(leg, rest[0])


def _run_ros2(leg: Leg) -> int:
    from deploy.ros2.node import run
    from deploy.ros2.plant_node import PlantNode

    return run(lambda: PlantNode("plant", lambda node: leg))


def _run_lcm(leg: Any, url: str) -> int:
    from sim.lcm_plant import LcmPlant
    from sim.supervisor import interruptible

    plant = LcmPlant(leg, url, realtime=True)
    print(READY, flush=True)
    with interruptible():
        plant.run(sys.maxsize)
    return 0


if __name__ == "__main__":
    sys.exit(main())
