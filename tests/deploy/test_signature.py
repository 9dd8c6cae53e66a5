"""A robot with a public key takes what its owner signed, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from keypair import private_pem, public_pem, write_key, write_pair
from leg import dynamics_graph, golden, policy_graph, spec

from adapters.errors import UserError
from deploy.bundle import Bundle, attach_validation, write_bundle
from deploy.signature import fingerprint, read_public_key, read_signing_key

WriteBundle = Callable[..., Path]

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(*arguments: str | Path) -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=True, timeout=30).stdout


def test_signed_bundle_loads_with_the_public_key_and_without(write: WriteBundle, tmp_path: Path) -> None:
    private, public = write_pair(tmp_path)
    path = write(signing_key=read_signing_key(private))
    bundle = Bundle.load(path, public)
    der = read_public_key(public).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert bundle.signed_by == hashlib.sha256(der).hexdigest()
    assert Bundle.load(path).signed_by is None
    # A signature is beside the content: it does not rename the bundle.
    assert bundle.sha256 == Bundle.load(write()).sha256


def test_unsigned_bundle_is_refused(write: WriteBundle, tmp_path: Path) -> None:
    _, public = write_pair(tmp_path)
    path = write()
    with pytest.raises(UserError, match=r"leg\.bundle is not signed, but only bundles signed by the key [0-9a-f]{64} "):
        Bundle.load(path, public)
    (path / "signature").mkdir()
    with pytest.raises(UserError, match="is not signed"):
        Bundle.load(path, public)


def test_signature_by_another_key_is_refused(write: WriteBundle, tmp_path: Path) -> None:
    _, public = write_pair(tmp_path)
    other, _ = write_pair(tmp_path, "other")
    path = write(signing_key=read_signing_key(other))
    with pytest.raises(UserError, match=f"another key than {fingerprint(read_public_key(public))} signed it"):
        Bundle.load(path, public)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A signed bundle with every kind of file, and the public key."""
    folder = tmp_path_factory.mktemp("signed")
    private, public = write_pair(folder)
    path = folder / "leg.bundle"
    write_bundle(
        path,
        policy_graph(),
        spec(),
        golden(),
        dynamics_graph(),
        validation={"schema": 1, "cells": []},
        parts={"prior.npz": b"prior"},
        signing_key=read_signing_key(private),
    )
    return path, public


FILES = ("bundle.json", "signature", "policy.onnx", "dynamics.onnx", "golden.npz", "validation.json", "prior.npz")


@settings(max_examples=150)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_altered_byte_anywhere_is_refused(signed: tuple[Path, Path], name: str, place: float, flip: int) -> None:
    path, public = signed
    content = (path / name).read_bytes()
    offset = int(place * len(content))
    (path / name).write_bytes(content[:offset] + bytes([content[offset] ^ flip]) + content[offset + 1 :])
    try:
        with pytest.raises(UserError, match=r"was altered|is not the file that was written"):
            Bundle.load(path, public)
    finally:
        (path / name).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [lambda c: b"", lambda c: c[:-1], lambda c: c + b"\n"])
def test_file_of_another_length_is_refused(
    signed: tuple[Path, Path], name: str, change: Callable[[bytes], bytes]
) -> None:
    path, public = signed
    assert {entry.name for entry in path.iterdir()} == set(FILES)
    assert Bundle.load(path, public).signed_by is not None
    content = (path / name).read_bytes()
    (path / name).write_bytes(change(content))
    try:
        with pytest.raises(UserError, match=r"was altered|is not the file that was written"):
            Bundle.load(path, public)
    finally:
        (path / name).write_bytes(content)


def test_swapped_file_is_refused_whether_its_hash_is_mended_or_not(write: WriteBundle, tmp_path: Path) -> None:
    private, public = write_pair(tmp_path)
    key = read_signing_key(private)
    other = write(signing_key=key, rate=1.0).rename(tmp_path / "other.bundle")
    path = write(signing_key=key)
    # The same graph, signed by the same key, but with another description in its metadata.
    shutil.copy(other / "policy.onnx", path / "policy.onnx")
    with pytest.raises(UserError, match=r"policy\.onnx is not the file that was written"):
        Bundle.load(path, public)
    content = json.loads((path / "bundle.json").read_text())
    content["files"]["policy.onnx"] = hashlib.sha256((path / "policy.onnx").read_bytes()).hexdigest()
    (path / "bundle.json").write_text(json.dumps(content))
    Bundle.load(path)  # nothing but the signature tells
    with pytest.raises(UserError, match="was altered"):
        Bundle.load(path, public)
    shutil.copy(other / "signature", path / "signature")
    with pytest.raises(UserError, match="was altered"):
        Bundle.load(path, public)


def test_report_goes_into_a_signed_bundle_with_its_key_alone(write: WriteBundle, tmp_path: Path) -> None:
    private, public = write_pair(tmp_path)
    other, _ = write_pair(tmp_path, "other")
    key = read_signing_key(private)
    path = write(signing_key=key)
    report = {"schema": 1, "bundle": Bundle.load(path).sha256}
    with pytest.raises(UserError, match="is signed, and a report put into it would break the signature"):
        attach_validation(path, report)
    with pytest.raises(UserError, match="another key"):
        attach_validation(path, report, read_signing_key(other))
    assert Bundle.load(path, public).validation() is None
    attach_validation(path, report, key)
    loaded = Bundle.load(path, public)
    assert loaded.validation() == report and loaded.sha256 == report["bundle"]


def test_report_does_not_sign_what_was_altered_or_not_signed(write: WriteBundle, tmp_path: Path) -> None:
    private, _ = write_pair(tmp_path)
    key = read_signing_key(private)
    path = write(signing_key=key)
    report = {"schema": 1, "bundle": Bundle.load(path).sha256}
    with (path / "bundle.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="was altered"):
        attach_validation(path, report, key)
    (path / "signature").unlink()
    with pytest.raises(UserError, match="is not signed"):
        attach_validation(path, report, key)


def test_writing_again_without_a_key_leaves_no_old_signature(write: WriteBundle, tmp_path: Path) -> None:
    private, _ = write_pair(tmp_path)
    path = write(signing_key=read_signing_key(private))
    write()
    assert not (path / "signature").exists()


def test_no_part_may_take_the_signature_s_name() -> None:
    with pytest.raises(ValueError, match="'signature' is no name of a file"):
        spec().model_validate(spec().model_dump() | {"files": {"signature": "0" * 64}})


@needs_openssl
def test_openssl_makes_the_keys_and_verifies_the_signature(write: WriteBundle, tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    private.chmod(0o600)
    path = write(signing_key=read_signing_key(private))
    bundle = Bundle.load(path, public)
    der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
    assert bundle.signed_by == hashlib.sha256(der).hexdigest()
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", path / "bundle.json")
    assert b"Verified Successfully" in openssl(*verify, "-sigfile", path / "signature")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_private_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_key(tmp_path / "key.pem", private_pem(Ed25519PrivateKey.generate()), mode)
    with pytest.raises(UserError, match=r"key\.pem is open to others than its owner; .* chmod 600 /.*key\.pem\.$"):
        read_signing_key(path)
    path.chmod(0o400)
    read_signing_key(path)


PRIVATE = private_pem(Ed25519PrivateKey.generate())
LOCKED = private_pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"a pass phrase"))
RSA = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no private key in PEM"),
        (b"not a key", "holds no private key in PEM"),
        (base64.b64decode(b"".join(PRIVATE.splitlines()[1:-1])), "holds no private key in PEM"),  # DER
        (PRIVATE[: len(PRIVATE) // 2], "holds no private key in PEM"),
        (PRIVATE.replace(b"MC4C", b"MC4D"), "holds no private key in PEM"),
        (public_pem(Ed25519PrivateKey.generate()), "is a public key, but signing takes the private one"),
        (private_pem(RSA), "is not of the kind Ed25519"),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "is not of the kind Ed25519"),
        (private_pem(x25519.X25519PrivateKey.generate()), "is not of the kind Ed25519"),
        (LOCKED, "is encrypted, and Surefoot asks for no pass phrase"),
    ],
)
def test_other_file_than_a_private_key_is_refused_and_not_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"key\.pem {sentence}") as caught:
        read_signing_key(write_key(tmp_path / "key.pem", content))
    # Neither the sentence nor what --debug would show behind it quotes the file or the library.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert not any(line.decode("latin-1") in str(caught.value) for line in content.splitlines()[1:-1])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no public key in PEM"),
        (b"not a key", "holds no public key in PEM"),
        (PRIVATE, "is a private key, which has no place on a robot"),
        (LOCKED, "is a private key, which has no place on a robot"),
        (public_pem(RSA), "is not of the kind Ed25519"),
    ],
)
def test_other_file_than_a_public_key_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"key\.pub {sentence}"):
        read_public_key(write_key(tmp_path / "key.pub", content))


@pytest.mark.parametrize("read", [read_signing_key, read_public_key])
def test_key_that_is_no_file_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match=r"there is no file .*key\.pem; check the path"):
        read(tmp_path / "key.pem")
    with pytest.raises(UserError, match=r"cannot read .*Is a directory"):
        read(tmp_path)


def test_key_is_read_before_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*key\.pub"):
        Bundle.load(tmp_path / "none.bundle", tmp_path / "key.pub")
