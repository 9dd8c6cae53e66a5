"""The bundle of the leg, written afresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leg import dynamics_graph, golden, policy_graph, spec

from deploy.bundle import write_bundle


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(context=True, law="effort", signing_key=None, **limits)` writes leg.bundle and returns its path."""

    def make(context: bool = True, law: str = "effort", signing_key: Any = None, **limits: Any) -> Path:
        path = tmp_path / "leg.bundle"
        write_bundle(
            path,
            policy=policy_graph(context),
            spec=spec(context, law, **limits),
            golden=golden(context=context),
            dynamics=dynamics_graph() if context else None,
            signing_key=signing_key,
        )
        return path

    return make
