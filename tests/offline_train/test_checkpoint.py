"""Checkpoints: what goes in comes out to the bit, and damage is one clear sentence."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from toy import state_equal

from adapters.errors import UserError
from offline_train.checkpoint import load_checkpoint, save_checkpoint

STATE: dict[str, Any] = {
    "weights": torch.arange(6.0).view(2, 3).T,
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "param_groups": [{"lr": 1e-3, "betas": [0.9, 1]}]},
    "generator": torch.Generator().manual_seed(5).get_state(),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "updates": 7,
    "best": float("inf"),
    "note": None,
    "name": "mopo",
}

LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    LEAVES | st.integers(0, 4).map(lambda n: torch.arange(float(n))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", max_size=2) | st.integers(-3, 3), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "state", STATE)
    loaded = load_checkpoint(tmp_path / "state")
    assert state_equal(STATE, loaded)
    assert loaded["weights"].dtype == torch.float32 and loaded["generator"].dtype == torch.uint8
    assert [*loaded["optimizer"]["state"]] == [0, 1]


@given(tree=st.dictionaries(st.text("abc", max_size=2), TREES, max_size=4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_round_trips(tmp_path: Path, tree: dict[str, Any]) -> None:
    save_checkpoint(tmp_path / "state", tree)
    assert state_equal(tree, load_checkpoint(tmp_path / "state"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2) * (1 + 1e-7)}),
        ({"a": torch.ones(2)}, {"a": [1.0, 1.0]}),
        ({"a": 1}, {"b": 1}),
        ({"a": [1, 2]}, {"a": [1]}),
        ({"a": None}, {"a": 0}),
    ],
)
def test_states_that_differ_are_not_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert state_equal(first, first)
    assert not state_equal(first, second)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint .*gone"):
        load_checkpoint(tmp_path / "gone")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "policy.safetensors"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    cut = {0.5: len(whole) // 2, -1: len(whole) - 1}.get(keep, int(keep))
    path.write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"policy.safetensors is not a whole checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x80\x04\x95pickle", b"\xff" * 64])
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_checkpoint(path)


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "other")
    save_file({"weight": torch.ones(2)}, tmp_path / "other", metadata={"tree": "{"})
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "other")


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint that has to survive the failure of the next one."""
    path = tmp_path / "policy.safetensors"
    save_checkpoint(path, {"updates": 1})
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_full_disk(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*policy.safetensors: the disk is full"):
        save_checkpoint(old, {"updates": 2})


def test_file_larger_than_the_system_takes(old: Path) -> None:
    # The limit makes the writer itself fail in the middle of the file, as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*policy.safetensors: .*[Tt]oo large"):
            save_checkpoint(old, {"weight": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "policy.safetensors", {"updates": 1})


def test_what_json_cannot_say_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "state", {"thing": object()})
    assert not [*tmp_path.iterdir()]
