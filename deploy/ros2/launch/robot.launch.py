"""Policy and safety node beside the ros2_control of a robot: `ros2 launch surefoot robot.launch.py bundle:=PATH`.

ros2_control runs a joint_state_broadcaster, where the bundle asks for them broadcasters of imu and odom, and a
ForwardCommandController whose joints are the bundle's, in the bundle's order.

All else that the nodes are told (dry_run, autostart, public_key ...) stands in the parameters file alone, over which an
argument here would win unseen: copy config/robot.yaml and give params_file:=PATH.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

DEFAULTS = str(Path(get_package_share_directory("surefoot")) / "config" / "robot.yaml")


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start both nodes."""
    bundle = {"bundle": ParameterValue(LaunchConfiguration("bundle"), value_type=str)}
    parameters, namespace = LaunchConfiguration("params_file"), LaunchConfiguration("namespace")
    policy = Node(
        package="surefoot",
        executable="policy_node",
        name="policy",
        namespace=namespace,
        parameters=[parameters, bundle],
        output="screen",
    )
    safety = Node(
        package="surefoot",
        executable="safety_node",
        name="safety",
        namespace=namespace,
        parameters=[parameters, bundle],
        remappings=[("commands", LaunchConfiguration("command_topic"))],
        output="screen",
        # Without it nobody stops the robot, so it comes back; the policy does so when a person says.
        respawn=True,
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="folder of the bundle"),
            DeclareLaunchArgument("params_file", default_value=DEFAULTS, description="parameters of both nodes"),
            DeclareLaunchArgument("namespace", default_value="", description="of the nodes and the robot's topics"),
            DeclareLaunchArgument(
                "command_topic",
                default_value="/forward_command_controller/commands",
                description="what the robot's controller listens to",
            ),
            policy,
            safety,
        ]
    )
