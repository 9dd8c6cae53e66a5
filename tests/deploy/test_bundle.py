"""A bundle is read back as it was written, or refused in one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from keypair import write_pair
from leg import (
    ACT,
    DT,
    MOTION,
    OBS,
    PUSH,
    STD,
    act,
    dynamics_graph,
    golden,
    graph,
    policy_graph,
    robot,
    spec,
)
from pydantic import ValidationError

import adapters.files
from adapters.errors import UserError
from deploy.bundle import Bundle, BundleSpec, RobotDescription, attach_validation, write_bundle
from deploy.controller import Controller

WriteBundle = Callable[..., Path]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change bundle.json."""
    content = json.loads((path / "bundle.json").read_text())
    change(content)
    (path / "bundle.json").write_text(json.dumps(content))


def replace_golden(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Put other golden rows in, with the right hash."""
    np.savez(path / "golden.npz", **arrays)
    digest = hashlib.sha256((path / "golden.npz").read_bytes()).hexdigest()
    edit(path, lambda content: content["files"].update({"golden.npz": digest}))


def test_what_is_written_is_read_back(write: WriteBundle) -> None:
    path = write(rate=10.0)
    bundle = Bundle.load(path)
    files = bundle.manifest.files
    assert bundle.manifest.model_copy(update={"files": {}}) == spec(rate=10.0)
    assert set(files) == {"policy.onnx", "dynamics.onnx", "golden.npz"}
    assert files["policy.onnx"] == hashlib.sha256((path / "policy.onnx").read_bytes()).hexdigest()
    # Without a validation report the name is the hash of bundle.json itself.
    assert bundle.sha256 == hashlib.sha256((path / "bundle.json").read_bytes()).hexdigest()


def test_same_content_gives_the_same_bytes(write: WriteBundle) -> None:
    first = Bundle.load(write()).sha256
    assert Bundle.load(write()).sha256 == first


@pytest.mark.parametrize("leading", [(), (1,), (7,), (3, 4)])
def test_graphs_keep_leading_dimensions(write: WriteBundle, leading: tuple[int, ...]) -> None:
    bundle = Bundle.load(write())
    generator = np.random.default_rng(1)
    obs, z = generator.standard_normal((*leading, OBS)), generator.uniform(0.5, 1.5, (*leading, OBS))
    action = bundle.act(obs, z)
    assert action.shape == (*leading, ACT)
    np.testing.assert_allclose(action, act(obs, z), atol=1e-5)
    delta, std = bundle.predict_change(obs, action)
    np.testing.assert_allclose(delta, obs @ MOTION + action @ PUSH, atol=1e-5)
    np.testing.assert_allclose(std, np.full((*leading, OBS), STD), atol=1e-6)


def test_bundle_without_context(write: WriteBundle) -> None:
    bundle = Bundle.load(write(context=False))
    obs = np.random.default_rng(1).standard_normal((4, OBS))
    np.testing.assert_allclose(bundle.act(obs), act(obs, None), atol=1e-5)
    with pytest.raises(UserError, match=r"has no dynamics\.onnx"):
        bundle.predict_change(obs, np.zeros((4, ACT)))


def test_metadata_of_each_graph_mirrors_the_description_without_hashes(write: WriteBundle) -> None:
    path = write()
    for name in ("policy.onnx", "dynamics.onnx"):
        model = onnx.load(path / name)
        mirrored = json.loads({entry.key: entry.value for entry in model.metadata_props}["surefoot"])
        assert "files" not in mirrored
        assert BundleSpec.model_validate(mirrored) == spec()


def test_validation_and_parts_are_kept_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "leg.bundle"
    written = write_bundle(
        path,
        policy=policy_graph(False),
        spec=spec(False),
        golden=golden(context=False),
        validation={"schema": 1, "cells": []},
        parts={"prior.npz": b"prior"},
    )
    assert set(written.files) == {"policy.onnx", "golden.npz", "validation.json", "prior.npz"}
    assert Bundle.load(path).validation() == {"schema": 1, "cells": []}
    (path / "prior.npz").write_bytes(b"other")
    with pytest.raises(UserError, match=r"prior\.npz is not the file that was written"):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["policy.onnx", "dynamics.onnx", "golden.npz"])
def test_changed_byte_is_refused(write: WriteBundle, name: str) -> None:
    path = write()
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not the file that was written"):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["policy.onnx", "dynamics.onnx", "golden.npz"])
def test_missing_file_is_refused(write: WriteBundle, name: str) -> None:
    path = write()
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["policy.onnx", "dynamics.onnx", "golden.npz"])
def test_file_that_is_not_listed_is_missed(write: WriteBundle, name: str) -> None:
    path = write()
    edit(path, lambda content: content["files"].pop(name))
    with pytest.raises(UserError, match=f"lists no {name}"):
        Bundle.load(path)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no bundle"):
        Bundle.load(tmp_path / "none.bundle")


def test_folder_without_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*bundle\.json"):
        Bundle.load(tmp_path)


def test_description_cut_short_is_refused(write: WriteBundle) -> None:
    path = write()
    text = (path / "bundle.json").read_text()
    (path / "bundle.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"bundle\.json is not valid JSON"):
        Bundle.load(path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_schema_version_is_refused(write: WriteBundle, version: Any) -> None:
    path = write()
    edit(path, lambda content: content.update(schema=version))
    with pytest.raises(UserError, match=r"schema version .*; this Surefoot knows 1"):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(colour="red"), "unknown key 'colour'"),
        (lambda c: c["context"].update(estimator="guess"), r"bundle\.json: there is no context estimator 'guess'"),
        (lambda c: c["context"].update(estimator="history"), "'history' gives no context of the kind delta_scale"),
        (lambda c: c["robot"]["observations"][0].update(scale=0), "scale 0, with which nothing of it would be seen"),
        (lambda c: c["robot"]["observations"][0].update(clip=[1, -1]), r"clipped to 1\.0 to -1\.0; the first must be"),
        (lambda c: c["robot"]["action"].update(gain=2), r"unknown key 'robot\.action\.gain'"),
        (lambda c: c.pop("env"), "env: Field required"),
        (lambda c: c["robot"].update(control_dt=0), r"robot\.control_dt: .*greater than 0"),
        (lambda c: c["context"].update(dim=4), "nominal has 5 numbers and dim asks for 4"),
        (lambda c: c["context"].update(pushed=[1]), "pushed goes with actuator_gain, and the kind is delta_scale"),
        (
            lambda c: c["context"].update(pushed=[5], kind="actuator_gain"),
            r"context\.pushed names term 5 of 5, from 0 on",
        ),
        (lambda c: c["context"].update(pushed=[-1]), r"context\.pushed.*greater than or equal to 0"),
        (
            lambda c: c["context"].update(pushed=[1], kind="actuator_gain"),
            "a number for each of push on ",
        ),
        (lambda c: c["files"].update({"../x": "0"}), "no name of a file"),
    ],
)
def test_description_that_says_something_else_is_refused(
    write: WriteBundle, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    path = write()
    edit(path, change)
    with pytest.raises(UserError, match=sentence):
        Bundle.load(path)


def test_graph_of_another_size_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["obs", "gain"], ["action"])
    wide = graph({"obs": OBS + 1}, {"action": ACT}, [node], {"gain": np.zeros((OBS + 1, ACT))})
    with pytest.raises(
        UserError, match=r"inputs obs \(batch, 6\), but its description asks for obs \(batch, 5\)"
    ) as caught:
        write_bundle(tmp_path / "leg.bundle", policy=wide, spec=spec(False), golden=golden(context=False))
    assert str(tmp_path / "leg.bundle" / "policy.onnx") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_graph_with_other_names_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["state", "gain"], ["torque"])
    renamed = graph({"state": OBS}, {"torque": ACT}, [node], {"gain": np.zeros((OBS, ACT))})
    with pytest.raises(UserError, match=r"inputs state .* asks for obs \(batch, 5\)"):
        write_bundle(tmp_path / "leg.bundle", policy=renamed, spec=spec(False), golden=golden(context=False))


def test_fixed_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"obs \(1, 5\)"):
        write_bundle(
            tmp_path / "leg.bundle", policy=policy_graph(False, batch=1), spec=spec(False), golden=golden(context=False)
        )


def test_policy_that_takes_no_context_where_there_should_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"asks for obs \(batch, 5\), context \(batch, 5\)"):
        write_bundle(
            tmp_path / "leg.bundle", policy=policy_graph(False), spec=spec(), golden=golden(), dynamics=dynamics_graph()
        )


def test_context_without_dynamics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lists no dynamics\.onnx"):
        write_bundle(tmp_path / "leg.bundle", policy=policy_graph(), spec=spec(), golden=golden())


def test_file_that_is_no_model_is_refused(write: WriteBundle) -> None:
    path = write(context=False)
    (path / "policy.onnx").write_bytes(b"not a model")
    digest = hashlib.sha256(b"not a model").hexdigest()
    edit(path, lambda content: content["files"].update({"policy.onnx": digest}))
    with pytest.raises(UserError, match=r"policy\.onnx is not a model that onnxruntime can run"):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["action", "delta", "std"])
def test_runtime_that_computes_something_else_is_refused(write: WriteBundle, name: str) -> None:
    path = write()
    arrays = golden()
    arrays[name][40, 1] += 0.25
    replace_golden(path, arrays)
    # A moved action moves the predicted change as well; the action is compared first.
    with pytest.raises(UserError, match=rf"does not reproduce the golden rows of '{name}'.* 0\.25;"):
        Bundle.load(path)


def test_small_differences_pass_and_nan_does_not(write: WriteBundle) -> None:
    path = write(context=False)
    arrays = golden(context=False)
    arrays["action"] += 5e-5
    replace_golden(path, arrays)
    Bundle.load(path)
    arrays["action"][0, 0] = np.nan
    replace_golden(path, arrays)
    with pytest.raises(UserError, match="golden rows of 'action'"):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda g: {name: rows[:63] for name, rows in g.items()}, "has 63 rows and needs at least 64"),
        (lambda g: {}, "has 0 rows"),
        (lambda g: {name: rows for name, rows in g.items() if name != "std"}, "should hold action, context, delta"),
        (lambda g: g | {"action": g["action"][:, :1]}, r"'action' has shape \(64, 1\) and should have \(64, 2\)"),
    ],
)
def test_golden_rows_that_do_not_fit_are_refused(write: WriteBundle, change: Any, sentence: str) -> None:
    path = write()
    replace_golden(path, change(golden()))
    with pytest.raises(UserError, match=sentence):
        Bundle.load(path)


def test_golden_rows_with_pickles_are_refused(write: WriteBundle) -> None:
    path = write()
    replace_golden(path, {"obs": np.array([{"a": 1}] * 64, dtype=object)})
    with pytest.raises(UserError, match=r"golden\.npz cannot be read"):
        Bundle.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no archive"])
def test_golden_rows_in_no_archive_are_refused(write: WriteBundle, content: bytes) -> None:
    path = write()
    (path / "golden.npz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(path, lambda said: said["files"].update({"golden.npz": digest}))
    with pytest.raises(UserError, match=r"golden\.npz cannot be read"):
        Bundle.load(path)


def test_full_disk_leaves_the_old_bundle(write: WriteBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    before = Bundle.load(path).sha256

    def full(draft: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters.files, "_sync", full)
    with pytest.raises(UserError, match="the disk is full"):
        write(rate=1.0)
    assert Bundle.load(path).sha256 == before
    assert [entry.name for entry in path.parent.iterdir()] == ["leg.bundle"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["observations"].append(c["observations"][0]), "observation term 'pitch' occurs twice"),
        (lambda c: c["action"].update(joints=["hip", "hip"]), "action joint 'hip' occurs twice"),
        (lambda c: c["action"].update(low=[-2]), "low has 1 numbers and joints asks for 2"),
        (lambda c: c["action"].update(low=[-2, 3]), "command of 'knee' has low 3.0 and high 3.0"),
        (lambda c: c["limits"].update(position={"ankle": [-1, 1]}), "names 'ankle', whose position is not observed"),
        (lambda c: c["limits"].update(effort={"hip": 1}), "names 'hip', whose effort is not observed"),
        (lambda c: c["limits"].update(position={"hip": [1, -1]}), "position of 'hip' is 1.0 to -1.0"),
        (lambda c: c["limits"].update(velocity={"hip": 0}), "greater than 0"),
        (lambda c: (c["observations"].pop(0), c["limits"].update(tilt=1)), "no observation term has the source tilt"),
        (
            lambda c: (c["observations"].pop(2), c["action"].update(law="position")),
            "'knee' is commanded by position, so its position has to be observed",
        ),
        (lambda c: c.update(control_dt=float("inf")), "finite"),
    ],
)
def test_robot_description_that_contradicts_itself_is_refused(change: Any, sentence: str) -> None:
    content = robot().model_dump(mode="json")
    change(content)
    with pytest.raises(ValidationError, match=sentence):
        RobotDescription.model_validate(content)


def test_sizes_and_places_of_a_robot() -> None:
    leg = robot()
    assert (leg.obs_dim, leg.act_dim, leg.control_dt) == (OBS, ACT, DT)
    assert leg.index("joint_velocity", "hip") == 3
    assert leg.index("joint_effort", "hip") is None


def test_a_report_put_in_does_not_rename_the_bundle(write: WriteBundle) -> None:
    path = write()
    name = Bundle.load(path).sha256
    for mean in (1.0, 2.0):
        attach_validation(path, {"schema": 1, "bundle": name, "return_mean": mean})
        loaded = Bundle.load(path)
        assert loaded.sha256 == name
        assert loaded.validation() == {"schema": 1, "bundle": name, "return_mean": mean}


def test_a_report_of_another_bundle_is_refused(write: WriteBundle) -> None:
    path = write()
    with pytest.raises(UserError, match="another bundle"):
        attach_validation(path, {"schema": 1, "bundle": "0" * 64})
    assert Bundle.load(path).validation() is None


def lone(path: Path, description: str | None = None) -> Path:
    """Take the policy out of a bundle; give it another description where there is one."""
    file = path.with_name("alone.onnx")
    model = onnx.load(path / "policy.onnx")
    if description is not None:
        onnx.helper.set_model_props(model, {"surefoot": description})
    onnx.save(model, file)
    return file


def test_lone_policy_loads_from_its_metadata(write: WriteBundle) -> None:
    path = write(rate=10.0)
    whole, alone = Bundle.load(path), Bundle.load(lone(path))
    assert alone.lone and not whole.lone
    assert alone.manifest == spec(rate=10.0)
    assert alone.sha256 == hashlib.sha256(alone.path.read_bytes()).hexdigest()
    assert alone.validation() is None and alone.signed_by is None
    obs, z = np.random.default_rng(1).uniform(0.5, 1.5, (2, 7, OBS))
    np.testing.assert_array_equal(alone.act(obs, z), whole.act(obs, z))


def test_lone_policy_runs_with_its_nominal_context_alone(write: WriteBundle) -> None:
    path = write()
    alone = Bundle.load(lone(path))
    with pytest.raises(UserError, match=r"alone\.onnx has no dynamics\.onnx, .*; set context=nominal"):
        Controller(alone, context="inferred")
    nominal, same = (Controller(bundle, context="nominal") for bundle in (alone, Bundle.load(path)))
    for step, obs in enumerate(0.3 * np.random.default_rng(1).standard_normal((5, OBS))):
        action = nominal.step(step * DT, obs).action
        np.testing.assert_array_equal(action, same.step(step * DT, obs).action)
        np.testing.assert_allclose(action, act(obs, np.ones(OBS)), atol=1e-6)


def test_lone_policy_without_context_just_runs(write: WriteBundle) -> None:
    controller = Controller(Bundle.load(lone(write(context=False))))
    obs = np.full(OBS, 0.1)
    np.testing.assert_allclose(controller.step(0.0, obs).action, act(obs, None), atol=1e-6)


def test_hashes_that_the_metadata_claims_are_not_believed(write: WriteBundle) -> None:
    claim = spec().model_copy(update={"files": {"validation.json": "0" * 64}})
    alone = Bundle.load(lone(write(), claim.to_json()))
    assert alone.lone and alone.validation() is None


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("", "the description in .*alone.onnx is not valid JSON"),
        ('{"schema": 1', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "has schema version None; this Surefoot knows 1"),
        ('{"schema": 2}', "has schema version 2; this Surefoot knows 1"),
        ('{"schema": 1, "colour": "red"}', "env: Field required; export the bundle again"),
        (spec(context=False).to_json(), r"has the inputs obs .*, context .*, but its description asks for obs \("),
    ],
)
def test_lone_policy_with_a_broken_description_is_refused(write: WriteBundle, description: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Bundle.load(lone(write(), description))


def test_description_that_is_no_text_is_refused(write: WriteBundle) -> None:
    file = lone(write(), "description")
    file.write_bytes(file.read_bytes().replace(b"description", b"\xff" * len("description")))
    with pytest.raises(UserError, match=r"alone\.onnx has no description"):
        Bundle.load(file)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a model that onnxruntime can run"),
        (b"a note", "is not a model that onnxruntime can run"),
        (policy_graph(), "has no description of a bundle in its metadata; give a policy.onnx"),
    ],
)
def test_file_that_is_no_policy_of_a_bundle_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "alone.onnx").write_bytes(content)
    with pytest.raises(UserError, match=rf"alone\.onnx {sentence}"):
        Bundle.load(tmp_path / "alone.onnx")


def test_lone_dynamics_are_no_policy(write: WriteBundle) -> None:
    with pytest.raises(UserError, match=r"dynamics\.onnx has the inputs obs .*, action"):
        Bundle.load(write() / "dynamics.onnx")


def test_lone_policy_is_refused_where_a_signature_is_asked_for(write: WriteBundle, tmp_path: Path) -> None:
    _, public = write_pair(tmp_path)
    with pytest.raises(UserError, match=r"alone\.onnx is a lone file, which carries no signature; give the folder"):
        Bundle.load(lone(write()), public)


def test_lone_policy_takes_no_report(write: WriteBundle) -> None:
    file = lone(write())
    before = file.read_bytes()
    with pytest.raises(UserError, match="give the folder"):
        attach_validation(file, {"schema": 1, "bundle": Bundle.load(file).sha256})
    assert file.read_bytes() == before
