"""Numbers by name, and the logger's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.lcm.channels import arrange
from deploy.lcm.logger import main


def test_numbers_are_found_by_name() -> None:
    np.testing.assert_array_equal(arrange(["knee", "tail", "hip"], [2.0, 9.0, 1.0], ["hip", "knee"]), [1.0, 2.0])


@pytest.mark.parametrize("names", [["hip", "hip", "knee"], ["hip", "knee", "knee"], ["hip", "tail", "head"]])
def test_what_is_missing_or_twice_is_no_number(names: list[str]) -> None:
    found = arrange(names, [1.0, 2.0, 3.0], ["hip", "knee"])
    assert np.isnan(found).tolist() == [names.count(name) != 1 for name in ("hip", "knee")]


def test_a_recording_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "robot.lcm").write_bytes(b"an episode")
    assert main([str(tmp_path / "robot.lcm")]) == 2
    assert "robot.lcm is there already; give another name" in capsys.readouterr().err
    assert (tmp_path / "robot.lcm").read_bytes() == b"an episode"
