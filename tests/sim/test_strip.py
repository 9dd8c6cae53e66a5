"""The pictures are those of the two episodes that were run, at the steps that are named."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sim.pages
from deploy.bundle import Bundle
from sim.perturb import Perturbation
from sim.scores import Column
from sim.strip import FRAMES, make_strip, telling_world
from sim.traces import Traces
from sim.validate import validate
from sim.video import NoGraphicsError

LATE = Perturbation.model_validate(
    {"name": "late", "at_step": 30, "actuator_gain": {"bthigh": 0.0}, "schedule": [{"at_step": 50}]}
)


def test_pictures_and_returns(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    try:
        strip = make_strip(Bundle.load(bundle), "s", LATE, seed=3, steps=60)
    except NoGraphicsError as error:
        pytest.skip(str(error))
    # From the change to the next one: 30 to 49 in seven pictures.
    assert (strip.steps[0], strip.steps[-1], len(strip.steps)) == (30, 49, FRAMES)
    assert [title for title, _, _ in strip.rows] == ["without adaptation", "adapted"]
    for _, pictures, returns in strip.rows:
        assert len(pictures) == FRAMES and returns[0] == 0.0
        first, last = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), int)
            for uri in (pictures[0], pictures[-1])
        )
        assert first.shape == last.shape and np.abs(first - last).max() > 50
    # The validation of an episode that ends at the next change tells the same return.
    suite = tmp_path / "s.yaml"
    suite.write_text("- {name: late, at_step: 30, actuator_gain: {bthigh: 0.0}}\n")
    report = validate(bundle, [suite], episodes=1, seed=3, steps=49, contexts=["nominal", "inferred"])
    expected = [cell["return_after_change"] for cell in report["cells"]]
    assert [returns[-1] for _, _, returns in strip.rows] == pytest.approx(expected, rel=1e-5)


def test_the_world_shown_is_a_failure_where_adaptation_matters_most() -> None:
    values = {"quiet": (5, 5), "early": (0, 90), "lost": (40, 10), "gained": (10, 20)}
    cells = [
        {"suite": "s", "name": name, "context": context, "returns": [float(value)]}
        | ({"return_after_change": 0.0} if name in ("lost", "gained") else {})
        for name, pair in values.items()
        for context, value in zip(("nominal", "inferred"), pair, strict=True)
    ]
    columns = [Column(context, [{"cells": cells}], context) for context in ("nominal", "inferred")]
    # A change of -30 is greater than one of +10; of the worlds that are changed from the start, 90 is the greatest.
    assert telling_world(*columns).name == "lost"
    for cell in cells:
        cell.pop("return_after_change", None)
    columns = [Column(context, [{"cells": cells}], context) for context in ("nominal", "inferred")]
    assert telling_world(*columns).name == "early"


@pytest.mark.parametrize("context", [True, False])
def test_a_page_without_pictures_says_why(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: bool
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none-such")
    (tmp_path / "s.yaml").write_text("- {name: light, gravity: 0.5}\n")
    bundle = make_bundle(context=context)
    report = validate(bundle, [tmp_path / "s.yaml"], episodes=1, steps=5)
    sim.pages.write_validation(tmp_path / "out", bundle, report, Traces(), "surefoot validate")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img" not in page and "<h2>In pictures</h2>" in page
    assert ("MuJoCo cannot render with MUJOCO_GL=none-such" if context else "only one of these was run") in page
