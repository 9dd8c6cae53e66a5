"""Algorithms: one readable file each over the shared parts."""
