"""SynthER: diffusion models of whole transitions, and data sets drawn from them (Lu et al. 2023, arXiv 2303.06614)."""
