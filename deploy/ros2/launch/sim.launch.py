"""Policy and safety node with a robot in MuJoCo, in real time: `ros2 launch surefoot sim.launch.py bundle:=PATH`.

`surefoot run robot=ros2` does the same without launch, and in lock step.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

# s after which the motors' drivers let go, where neither policy nor safety node is left.
COMMAND_TIMEOUT = 0.5


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the three nodes."""
    bundle = {"bundle": ParameterValue(LaunchConfiguration("bundle"), value_type=str)}
    namespace = LaunchConfiguration("namespace")
    plant = Node(
        package="surefoot",
        executable="mujoco_node",
        name="mujoco_node",
        namespace=namespace,
        parameters=[
            {"lock_step": False},
            {"command_timeout": COMMAND_TIMEOUT},
            {"env": ParameterValue(LaunchConfiguration("env"), value_type=str)},
            {"perturbation": ParameterValue(LaunchConfiguration("perturbation"), value_type=str)},
            {"steps": ParameterValue(LaunchConfiguration("steps"), value_type=int)},
            {"seed": ParameterValue(LaunchConfiguration("seed"), value_type=int)},
        ],
        output="screen",
    )
    policy = Node(
        package="surefoot",
        executable="policy_node",
        name="policy",
        namespace=namespace,
        parameters=[bundle, {"adapt": ParameterValue(LaunchConfiguration("adapt"), value_type=bool)}],
        output="screen",
    )
    safety = Node(
        package="surefoot",
        executable="safety_node",
        name="safety",
        namespace=namespace,
        parameters=[bundle],
        output="screen",
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="folder of the bundle"),
            DeclareLaunchArgument("env", default_value="halfcheetah", description="task that is simulated"),
            DeclareLaunchArgument(
                "perturbation", default_value="none", description="changed dynamics, SUITE:WORLD; none: the original"
            ),
            DeclareLaunchArgument("steps", default_value="0", description="control steps to the end; 0: none"),
            DeclareLaunchArgument("seed", default_value="0", description="of the start"),
            DeclareLaunchArgument("adapt", default_value="true", description="give the policy the inferred context"),
            DeclareLaunchArgument("namespace", default_value="", description="of all nodes and topics"),
            plant,
            policy,
            safety,
        ]
    )
