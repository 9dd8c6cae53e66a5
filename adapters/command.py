"""Commands: Hydra applications whose errors reach the dispatcher unchanged, and modules for `python -m`."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from adapters.errors import UserError


class CommandFailed(BaseException):
    """Carries a command's exception (`__cause__`) past Hydra, which would print lines of its own about it."""


def command(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Make a function of a `DictConfig` the `main` of `surefoot NAME`, configured by configs/NAME.yaml."""
    import hydra  # a second of import, which `surefoot --help` should not wait for

    def decorate(task: Callable[[Any], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(config: Any) -> None:
            try:
                task(config)
            except Exception as error:
                raise CommandFailed from error

        return hydra.main(version_base=None, config_path="pkg://configs", config_name=name)(guarded)

    return decorate


def module_command(work: Callable[[list[str]], None]) -> Callable[..., int]:
    """Make a function of the words behind `python -m MODULE` that module's `main`, which returns the exit code.

    A person's mistake ends with one line and exit code 2. `main(words)` takes other words than the command line's.
    """

    @functools.wraps(work)
    def guarded(words: Sequence[str] | None = None) -> int:
        try:
            work(sys.argv[1:] if words is None else list(words))
        except UserError as error:
            print(f"surefoot: {error}", file=sys.stderr)
            return 2
        return 0

    return guarded


def explain(error: BaseException | None) -> str | None:
    """One line for an error that a person can mend, or None for a defect of ours."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; install the extra that brings it, for example 'surefoot[train,sim]'."
    library = type(error).__module__.partition(".")[0]
    if library == "pydantic_core":
        return _explain_setting(error)
    if isinstance(error, UserError) or library in ("hydra", "omegaconf"):
        # Hydra goes on to list its search path, which tells a person nothing.
        return re.sub(r"\s+", " ", str(error).partition("Config search path")[0]).strip()
    return None


def _explain_setting(error: Any) -> str:
    """Name the first setting that was refused, and why."""
    first = error.errors()[0]
    # What several settings say together has all of them for its value, which would bury the reason.
    value = "" if isinstance(first["input"], dict) else f"={first['input']!r}"
    return f"the setting {'.'.join(map(str, first['loc']))}{value} is refused: {first['msg']}."
