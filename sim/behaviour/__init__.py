"""SAC policies, one run in each environment, `ENV-sac-STEPS.onnx`, that `surefoot collect` rolls out.

They are snapshots that `surefoot export` writes of a run `surefoot train algorithm=sac dataset=online`, named by the
control steps that the run had made; results/behaviour-policies.md has each run's settings and what the policies return.
"""
