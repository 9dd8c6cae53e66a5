"""The ROS 2 package `surefoot`: the policy and the safety filter as nodes, on standard messages alone."""
