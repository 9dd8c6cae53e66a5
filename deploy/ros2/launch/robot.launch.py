"""Policy and safety node beside the ros2_control of a robot: `ros2 launch surefoot robot.launch.py bundle:=PATH`.

ros2_control runs a joint_state_broadcaster, where the bundle asks for them broadcasters of imu and odom, and a
ForwardCommandController whose joints are the bundle's, in the bundle's order.
"""

from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

DEFAULTS = str(Path(get_package_share_directory("surefoot")) / "config" / "robot.yaml")


def given(context: LaunchContext, argument: LaunchConfiguration, **parameter: type) -> list[dict[str, Any]]:
    """A parameter, where its argument is given: a default here would win over the parameters file, unseen."""
    if not argument.perform(context):
        return []
    return [{name: ParameterValue(argument, value_type=kind) for name, kind in parameter.items()}]


def start(context: LaunchContext) -> list[Node]:
    """Make both nodes."""
    parameters, namespace = LaunchConfiguration("params_file"), LaunchConfiguration("namespace")
    bundle = given(context, LaunchConfiguration("bundle"), bundle=str)
    shared = [parameters, *bundle, *given(context, LaunchConfiguration("public_key"), public_key=str)]
    dry_run = given(context, LaunchConfiguration("dry_run"), dry_run=bool)
    policy = Node(
        package="surefoot",
        executable="policy_node",
        name="policy",
        namespace=namespace,
        parameters=[*shared, *dry_run, *given(context, LaunchConfiguration("autostart"), autostart=bool)],
        output="screen",
    )
    safety = Node(
        package="surefoot",
        executable="safety_node",
        name="safety",
        namespace=namespace,
        parameters=shared,
        remappings=[("commands", LaunchConfiguration("command_topic"))],
        output="screen",
        # Without it nobody stops the robot, so it comes back; the policy does so when a person says.
        respawn=True,
    )
    return [policy, safety]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start both nodes."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="folder of the bundle"),
            DeclareLaunchArgument(
                "public_key",
                default_value="",
                description="PEM file of its signer's key; empty: as in params_file",
            ),
            DeclareLaunchArgument("params_file", default_value=DEFAULTS, description="parameters of both nodes"),
            DeclareLaunchArgument("namespace", default_value="", description="of the nodes and the robot's topics"),
            DeclareLaunchArgument(
                "command_topic",
                default_value="/forward_command_controller/commands",
                description="what the robot's controller listens to",
            ),
            DeclareLaunchArgument(
                "dry_run", default_value="", description="compute all and send no command; empty: as in params_file"
            ),
            DeclareLaunchArgument(
                "autostart", default_value="", description="activate the policy at once; empty: as in params_file"
            ),
            OpaqueFunction(function=start),
        ]
    )
