"""What all tests share: the command line, run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import absl.logging
import hypothesis
import pytest

import surefoot

# dm_control logs through absl, whose handler would keep pytest's stand-in for the terminal, and close it when Hydra
# clears all handlers.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


# A busy machine may take a second for an example that takes a millisecond; time is nothing that a test looks at.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


class Done(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


CommandLine = Callable[..., Done]


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Run `surefoot ARGUMENTS` in this process, as a fresh one would, but without its start-up time."""
    # The dispatcher sets it for its own process; here it must not outlive the test.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["surefoot", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            surefoot.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run
