"""A command of the command line: a Hydra application whose errors reach the dispatcher unchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable

import hydra
from omegaconf import DictConfig


class CommandFailed(BaseException):
    """Carries a command's exception (`__cause__`) past Hydra, which would print lines of its own about it."""


def command(name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a function of a configuration the `main` of `surefoot NAME`, configured by configs/NAME.yaml."""

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(config: DictConfig) -> None:
            try:
                task(config)
            except Exception as error:
                raise CommandFailed from error

        return hydra.main(version_base=None, config_path="pkg://configs", config_name=name)(guarded)

    return decorate
