"""A video is rendered from states alone, where there is anything to render with."""

from __future__ import annotations

from pathlib import Path

import imageio
import numpy as np
import pytest

from sim.environments import make_environment
from sim.video import HEIGHT, WIDTH, NoGraphicsError, write_video


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """HalfCheetah at its start, and 3 m further on."""
    start = make_environment("halfcheetah").initial_states(np.random.default_rng(0), 1)[0]
    moved = start.copy()
    moved[1] += 3.0
    return np.stack([start, start, moved])


def test_runs_stand_side_by_side_in_real_time(states: np.ndarray, tmp_path: Path) -> None:
    lifted = states.copy()
    lifted[:, 2] += 1.0
    try:
        write_video(
            tmp_path / "two.mp4",
            "halfcheetah",
            {"low": states, "high": lifted},
            {"low": ["a", "b", "c"], "high": ["", "", ""]},
        )
    except NoGraphicsError as error:
        pytest.skip(str(error))
    with imageio.get_reader(tmp_path / "two.mp4") as video:
        frames = [np.asarray(frame) for frame in video]
        # A frame for each control period of 50 ms.
        assert video.get_meta_data()["fps"] == 20
    assert [frame.shape for frame in frames] == [(HEIGHT, 2 * WIDTH, 3)] * 3
    assert np.abs(frames[2][:, :WIDTH].astype(int) - frames[2][:, WIDTH:]).max() > 50


def test_no_graphics_is_one_sentence_and_no_file(
    states: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none-such")
    with pytest.raises(
        NoGraphicsError, match=r"^MuJoCo cannot render with MUJOCO_GL=none-such, so there is no video; "
    ):
        write_video(tmp_path / "no.mp4", "halfcheetah", {"one": states}, {"one": ["", "", ""]})
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
