"""Files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters.errors import UserError
from adapters.files import atomic_path, read_jsonl


def write_folder(path: Path, text: str) -> None:
    with atomic_path(path) as draft:
        draft.mkdir()
        (draft / "file").write_text(text)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_folder_that_is_replaced_is_there_before_and_after(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace, calls = tmp_path / "name", os.replace, []
    write_folder(path, "old")

    def interrupted(first: Path, second: Path) -> None:
        calls.append(first)
        if len(calls) == 2:  # the old folder has stepped aside, and the new one is about to take its place
            raise stop
        replace(first, second)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, UserError)):
        patch.setattr(os, "replace", interrupted)
        write_folder(path, "new")
    assert (path / "file").read_text() == "old" and [*tmp_path.iterdir()] == [path]
    write_folder(path, "new")
    assert (path / "file").read_text() == "new" and [*tmp_path.iterdir()] == [path]


def test_only_a_last_line_may_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_jsonl(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"a line of .*lines\.jsonl is not valid JSON"):
        read_jsonl(path)
