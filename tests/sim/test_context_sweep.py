"""The sweep over context estimators runs every variant over the same worlds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sim.context_sweep
from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.context import ESTIMATORS, estimator_settings
from sim.context_sweep import VARIANTS, FixedContext, Variant, sweep, table, variants_for
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


def test_an_episode_that_ended_early_is_no_motion_of_the_context() -> None:
    # It stays at 1 in a whole episode; in one that ended at step 700 there are zeros from then on.
    context = np.ones((1, 2, 1_000, 1))
    context[0, 1, 700:] = 0.0
    result = SimpleNamespace(context=context, falls=np.array([[False, True]]))
    assert sim.context_sweep._reaction(result, [[500]]) is None  # type: ignore[arg-type]


def test_a_fixed_context_tells_no_push() -> None:
    assert FixedContext(0.8, (2, 3), pushed=1).context(np.zeros((2, 5)), None).tolist() == [[0.0, 0.8, 0.8]] * 2


@pytest.mark.parametrize("kind", VARIANTS)
def test_variants_are_all_known_and_differ(kind: str) -> None:
    variants = VARIANTS[kind]
    for variant in variants:
        if variant.estimator in ESTIMATORS:
            estimator_settings(variant.estimator, variant.settings)
    assert len({(v.estimator, str(v.settings)) for v in variants}) == len(variants)
    # `history` needs a network of its own in the bundle, so it is no choice for another policy.
    estimators = {name for name, of in ESTIMATORS.items() if of == kind} - {"history"}
    assert {v.estimator for v in variants} == {"", "fixed", *estimators}


def test_a_policy_is_compared_under_what_it_reads(make_bundle: Callable[..., Path]) -> None:
    assert variants_for(Bundle.load(make_bundle())) == VARIANTS["delta_scale"]
    with pytest.raises(UserError, match="reads no context"):
        variants_for(Bundle.load(make_bundle(context=False)))
