"""World models: the probabilistic ensemble, its uncertainty penalties and its rollouts."""
