"""The outside world: data sets in, robots in and out. Imports nothing of the project."""
