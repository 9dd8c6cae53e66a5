"""The main job end to end: train, export, validate and report, then once more without doing anything again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CommandLine = Callable[..., Any]


SUITE = """
- name: mass-1-damping-1
- name: loose
  dof_damping: {"*": 0.5}
- name: dead-foot
  at_step: 500
  actuator_gain: {"ffoot": 0.0}
"""


def test_the_main_job_ends_with_a_report_and_is_not_done_twice(tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    output = tmp_path / "demo"
    arguments = ["demo", f"output={output}", "updates=4", "ensemble_steps=4", "episodes=1"]
    arguments.append(f"suites=[{tmp_path / 'tiny.yaml'}]")
    first = command_line(*arguments)
    assert first.code == 0, first.err
    page = (output / "report.html").read_text()
    for world in ("loose", "dead-foot", "AugWM inferred"):
        assert world in page
        assert world in first.out
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")
    for algorithm, contexts in (("mopo", {"nominal"}), ("augwm", {"nominal", "inferred", "oracle"})):
        report = json.loads((output / "validation" / f"{algorithm}-0.json").read_text())
        assert {cell["context"] for cell in report["cells"]} == contexts
        inside = json.loads((output / f"{algorithm}-0.bundle" / "validation.json").read_text())
        assert inside == report

    kept = [
        *output.glob("*-0/policy.safetensors"),
        *output.glob("validation/*"),
        *output.glob("world-model/*.safetensors"),
    ]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 5
    assert command_line(*arguments).code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_a_training_that_fails_is_one_line_that_names_its_log(tmp_path: Path, command_line: CommandLine) -> None:
    output = tmp_path / "demo"
    (output / "world-model").mkdir(parents=True)
    (output / "world-model" / "run.json").write_text("{")
    done = command_line("demo", f"output={output}", "updates=4", "ensemble_steps=4", "episodes=1")
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert "train.log" in line and "run.json" in line
