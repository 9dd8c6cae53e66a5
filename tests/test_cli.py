"""The dispatcher: help that teaches, one line and exit code 2 for a person's mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import surefoot

CommandLine = Callable[..., Any]
NAMES = [*surefoot.COMMANDS]


def one_line(done: Any) -> str:
    """The single line of a refused command."""
    assert done.code == 2, done
    assert done.err.startswith("surefoot: ") and done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    return done.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_usage_names_every_command(command_line: CommandLine, arguments: list[str]) -> None:
    done = command_line(*arguments)
    assert done.code == 0
    for name, (_, text) in surefoot.COMMANDS.items():
        assert f"  {name}" in done.out and text in done.out


def test_unknown_command(command_line: CommandLine) -> None:
    line = one_line(command_line("tarin", "seed=1"))
    assert "no command 'tarin'" in line
    assert all(name in line for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches(command_line: CommandLine, name: str) -> None:
    done = command_line(name, "--help")
    assert done.code == 0, done
    assert f"surefoot {name}" in done.out
    assert "Examples:" in done.out and "The settings as given" in done.out


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_setting(command_line: CommandLine, name: str) -> None:
    explained, _, rest = command_line(name, "--help").out.partition("The settings as given")
    # The line itself may say that a setting goes by another name inside.
    aliases, _, shown = rest.partition("\n")
    settings = [line.partition(":")[0] for line in shown.splitlines() if line and line[0].isalpha()]
    assert settings
    for setting in settings:
        # `suite` is what `perturbations` is called inside (surefoot.ALIASES).
        known = setting in explained + aliases or setting == "suite"
        assert known, f"{name} --help does not explain {setting}"


@pytest.mark.parametrize("name", NAMES)
def test_unknown_setting(command_line: CommandLine, name: str) -> None:
    assert "sed" in one_line(command_line(name, "sed=1"))


@pytest.mark.parametrize("override", ["algorithm=mop", "dataset=nothing", "robot=cat"])
def test_unknown_value_of_a_config_group(command_line: CommandLine, override: str) -> None:
    group, _, value = override.partition("=")
    line = one_line(command_line("train", override))
    assert f"{group}/{value}" in line


def test_value_that_a_setting_does_not_take(command_line: CommandLine) -> None:
    line = one_line(command_line("train", "algorithm=mopo", "algorithm.horizon=long"))
    assert "horizon" in line and "long" in line


def test_settings_that_contradict_one_another_are_not_all_shown(command_line: CommandLine) -> None:
    line = one_line(command_line("train", "algorithm=mabe", "algorithm.prior.updates=90000"))
    assert "prior.updates are part of the updates" in line and "batch_size" not in line


def test_missing_setting(command_line: CommandLine) -> None:
    assert "output" in one_line(command_line("collect"))


def test_malformed_override(command_line: CommandLine) -> None:
    one_line(command_line("train", "seed=[1,"))


def in_a_shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "surefoot", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(surefoot.__file__).parent,
        check=False,
    )


def test_debug_shows_the_traceback_and_nothing_else_does() -> None:
    brief, full = in_a_shell("collect", "sed=1"), in_a_shell("collect", "sed=1", "--debug")
    assert brief.returncode == 2 and one_line_of(brief.stderr)
    assert full.returncode != 0 and "Traceback (most recent call last)" in full.stderr


def one_line_of(text: str) -> bool:
    return text.startswith("surefoot: ") and text.count("\n") == 1


def test_debug_shows_where_a_refusal_comes_from() -> None:
    arguments = ("validate", "bundle=/nowhere.bundle")
    brief, full = in_a_shell(*arguments), in_a_shell(*arguments, "--debug")
    assert brief.returncode == 2 and one_line_of(brief.stderr) and "nowhere.bundle" in brief.stderr
    assert "Traceback" in full.stderr and "UserError" in full.stderr


def test_package_that_is_missing_is_named(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(surefoot.COMMANDS, "train", ("a_package_that_is_not_there", ""))
    line = one_line(command_line("train"))
    assert "a_package_that_is_not_there is not installed" in line and "surefoot[" in line


def test_defect_of_ours_is_not_hidden(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import collect

    def broken() -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(collect, "main", broken)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        command_line("collect")


def test_interrupt_ends_with_its_own_code(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import collect

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collect, "main", interrupted)
    assert command_line("collect").code == 130


def test_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "surefoot", "inspect", "--help"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 141 and done.stderr == ""
