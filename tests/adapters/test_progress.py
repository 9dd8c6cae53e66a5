"""What a progress bar leaves in a log, where no terminal shows the bar itself."""

from __future__ import annotations

import pytest

import adapters.progress
from adapters.progress import progress_bar


def three_moves() -> None:
    with progress_bar("world model", 4_000) as move:
        for done in (1_000, 2_000, 3_000):
            move(done, f"error {done / 1e5}")


def test_log_gets_lines_that_say_how_far(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(adapters.progress, "LINE_EVERY", 0.0)
    three_moves()
    lines = [line for line in capsys.readouterr().out.splitlines() if "of 4,000 steps" in line]
    assert [line.split(",", 2)[0] for line in lines] == [f"world model: {n}" for n in (1, 2, 3)]
    assert all(line.endswith(f"error 0.0{n}") for n, line in enumerate(lines, start=1))


def test_log_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    three_moves()
    assert "of 4,000 steps" not in capsys.readouterr().out


def test_nothing_is_shown_before_the_first_move(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("world model", 4_000):
        pass
    assert "world model" not in capsys.readouterr().out
