"""Data sets shipped with the package, in the compact npz form."""
