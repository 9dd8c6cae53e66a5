"""Commands that are pieces of a measurement: run once, resumed, and refused where they would mix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.errors import UserError
from adapters.files import read_json, write_json
from offline_train import commands
from offline_train.commands import Piece, run_all, run_once


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of all commands that are run, none of which does anything."""
    words: list[list[str]] = []
    monkeypatch.setattr(commands, "surefoot", lambda given, _: words.append([*given]))
    return words


@pytest.mark.parametrize(
    ("words", "name", "result"),
    [
        (["train", "algorithm=bc"], "run", "run/policy.safetensors"),
        (["train", "algorithm=none"], "run", "run/world_model.safetensors"),
        (["upsample"], "drawn", "drawn/synthetic.npz"),
        (["collect"], "log.npz", "log.npz"),
        (["export"], "a.bundle", "a.bundle"),
    ],
)
def test_what_is_there_is_not_made_again(
    tmp_path: Path, ran: list[list[str]], words: Sequence[str], name: str, result: str
) -> None:
    piece = Piece(tmp_path / name, words)
    assert run_once(piece) == name
    assert len(ran) == 1
    (tmp_path / result).parent.mkdir(exist_ok=True)
    (tmp_path / result).touch()
    run_once(piece)
    assert len(ran) == 1
    assert read_json(tmp_path / f"{name}.json") == words


def test_what_was_begun_goes_on(tmp_path: Path, ran: list[list[str]]) -> None:
    run_once(Piece(tmp_path / "run", ["train"]))
    write_json(tmp_path / "run" / "run.json", {})
    run_once(Piece(tmp_path / "run", ["train"]))
    run_once(Piece(tmp_path / "log.npz", ["collect"]))
    assert ran == [["train", "resume=False"], ["train", "resume=True"], ["collect"]]


def test_other_settings_are_refused(tmp_path: Path, ran: list[list[str]]) -> None:
    run_once(Piece(tmp_path / "run", ["train", "seed=1"]))
    with pytest.raises(UserError, match="run was made with other settings than those asked for now; remove it"):
        run_once(Piece(tmp_path / "run", ["train", "seed=2"]))
    assert len(ran) == 1


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    piece = Piece(tmp_path / "run", ["train", "algorithm=bc", "algorithm.updates=0", f"output={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=r"algorithm=bc .* failed, .*run\.log has all that it said: .*updates=0"):
        run_all([piece], 1, lambda *_, **__: None)
