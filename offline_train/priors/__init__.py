"""Behavioural priors: what the demonstrator would do in a state, and how sure that is."""
