"""SAC policies, one run in each environment, `ENV-sac-STEPS.onnx`, that `surefoot collect` rolls out.

Those of walker2d are snapshots that `surefoot export` writes of the run
`surefoot train algorithm=sac dataset=online dataset.env=walker2d algorithm.sac.initial_temperature=1.0
algorithm.snapshot_every=5 seed=0`. The one after 175,000 control steps returns 1,919 (mean of 40 episodes, standard
deviation 553) with its own noise.
"""
