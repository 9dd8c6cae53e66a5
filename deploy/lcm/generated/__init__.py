"""What `lcm-gen` makes of deploy/lcm/types."""
