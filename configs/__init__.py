"""Hydra configuration groups and perturbation suites, shipped with the package."""
