"""metrics.jsonl: one line a step, none twice after a resume."""

from __future__ import annotations

import json
from pathlib import Path

from adapters.files import read_jsonl
from offline_train.metrics import MetricsLog


def write(folder: Path, stage: str, steps: list[int], resume_at: int = 0) -> None:
    with MetricsLog(folder, stage, resume_at) as log:
        for step in steps:
            log.write(step, {"loss": step / 10})


def test_lines_are_kept_by_stage_and_step(tmp_path: Path) -> None:
    write(tmp_path, "policy", [1, 2])
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"stage": "policy", "step": 1, "loss": 0.1},
        {"stage": "policy", "step": 2, "loss": 0.2},
    ]
    assert [*(tmp_path / "tensorboard").iterdir()]


def test_resumed_run_drops_what_it_does_again_and_keeps_other_stages(tmp_path: Path) -> None:
    write(tmp_path, "world_model", [5, 6])
    write(tmp_path, "policy", [1, 2, 3])
    write(tmp_path, "policy", [2, 3, 4], resume_at=1)
    lines = [(line["stage"], line["step"]) for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert lines == [
        ("world_model", 5),
        ("world_model", 6),
        *(("policy", step) for step in (1, 2, 3, 4)),
    ]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "policy") as log:
        log.write(1, {"loss": float("nan"), "value": float("inf"), "return": 2.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"stage": "policy", "step": 1, "loss": None, "value": None, "return": 2.0}


def test_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "policy", [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [line["step"] for line in read_jsonl(path)] == [1]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "metrics.jsonl") == []
