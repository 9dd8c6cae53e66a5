"""SAC policies of one HalfCheetah-v5 run, `ENV-sac-STEPS.onnx`, that `surefoot collect` rolls out."""
