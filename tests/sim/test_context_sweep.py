"""The sweep over context estimators runs every variant over the same worlds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import sim.context_sweep
from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.context import ESTIMATORS, estimator_settings
from sim.context_sweep import VARIANTS, Variant, sweep, table
from sim.validate import validate


def test_rows_are_what_validation_measures(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tmp_path / "worlds.yaml"
    suite.write_text('- name: mass-1-damping-1\n- name: heavy\n  body_mass: {"*": 1.5}\n')
    bundle = make_bundle()
    monkeypatch.setattr(sim.context_sweep, "STEPS", 20)
    done: list[int] = []
    variants = [Variant("", {}), Variant("scale", {"min_explained": -1e9}), Variant("fixed", {"z": 1.0})]
    rows = sweep(Bundle.load(bundle), [str(suite)], 2, 3, variants, progress=done.append)
    assert done == [1, 2, 3]
    report = validate(bundle, [suite], episodes=2, seed=3, steps=20, contexts=["nominal", "inferred"])
    # The nominal context of this bundle is 1, so a fixed 1 does the same.
    for row, context in zip(rows, ("nominal", "inferred", "nominal"), strict=True):
        returns = {cell["name"]: cell["return_mean"] for cell in report["cells"] if cell["context"] == context}
        assert row["original"] == pytest.approx(returns["mass-1-damping-1"])
        assert row[str(suite)] == pytest.approx(sum(returns.values()) / 2)
    assert table(rows).row_count == 3


def test_variants_are_all_known_and_differ() -> None:
    for variant in VARIANTS:
        if variant.estimator in ESTIMATORS:
            estimator_settings(variant.estimator, variant.settings)
    assert len({(v.estimator, str(v.settings)) for v in VARIANTS}) == len(VARIANTS)
    scalings = {name for name, kind in ESTIMATORS.items() if kind == "delta_scale"}
    assert {v.estimator for v in VARIANTS} == {"", "fixed", *scalings}


def test_a_policy_without_a_context_is_refused(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="reads no context"):
        sweep(Bundle.load(make_bundle(context=False)), ["mass-damping"], 1, 0)
