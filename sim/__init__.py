"""MuJoCo: perturbed dynamics, batched plants and validation."""
