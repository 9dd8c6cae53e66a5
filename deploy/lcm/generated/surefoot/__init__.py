"""The message types; everything beside this file is made by `lcm-gen`, as deploy/lcm/__init__.py says."""

from deploy.lcm.generated.surefoot.command_t import command_t
from deploy.lcm.generated.surefoot.observation_t import observation_t
from deploy.lcm.generated.surefoot.order_t import order_t

__all__ = ["command_t", "observation_t", "order_t"]
