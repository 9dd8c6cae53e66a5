"""What runs on the robot: bundle, context estimation, safety and the control loop. No torch, no simulator."""
