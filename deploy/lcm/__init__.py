"""The controller behind LCM channels; everything here needs the extra `lcm`.

`types/*.lcm` say what passes. `generated/` is made of them by `lcm-gen`, which comes with the extra:

    lcm-gen --python --python-no-init --ppath deploy/lcm/generated deploy/lcm/types/*.lcm

For a robot whose driver is in another language, `lcm-gen` makes the same types for it.
"""
