"""Signatures: who made a bundle, so that a robot takes none from anyone else.

The file `signature` in a bundle's folder is the raw Ed25519 signature (64 bytes) of bundle.json, byte for byte. That
file holds the hash of every other one, the validation report's included, so nothing of a signed bundle can be changed:
people decide by the report what a robot may run. The price is that a report goes into a signed bundle only where the
signing key is. A signature says who made a bundle, not that it is the newest.

Keys are PEM files as openssl makes them (PKCS #8 and SubjectPublicKeyInfo), without a pass phrase: a private key is
kept safe by its owner and by permissions that are checked here. openssl verifies a signature as well:
`openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in bundle.json -sigfile signature`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from adapters.errors import UserError
from adapters.files import read_bytes
from deploy.spec import SIGNATURE, SPEC

MAKE_PRIVATE = "make one with openssl genpkey -algorithm ed25519 -out KEY"
MAKE_PUBLIC = "make it from the private one with openssl pkey -in KEY -pubout"


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read the private key that signs.

    Raises:
        UserError: it is not there, others may read it, or it is no unencrypted private Ed25519 key in PEM.
    """
    pem = read_bytes(path)
    if path.stat().st_mode & 0o077:
        raise UserError(f"the private key {path} is open to others than its owner; close it with chmod 600 {path}.")
    if b"PUBLIC KEY-----" in pem:
        raise UserError(f"{path} is a public key, but signing takes the private one of the pair.")
    # What the library says of a private key is neither quoted nor chained, so that no part of a key reaches a log.
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise UserError(
            f"the private key {path} is encrypted, and Surefoot asks for no pass phrase; give an unencrypted key that "
            "its owner alone can read."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path} holds no private key in PEM (PKCS #8); {MAKE_PRIVATE}.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"the private key {path} is not of the kind Ed25519; {MAKE_PRIVATE}.")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read the public key whose signatures are taken.

    Raises:
        UserError: it is not there, or it is no public Ed25519 key in PEM.
    """
    pem = read_bytes(path)
    if b"PRIVATE KEY-----" in pem:
        raise UserError(f"{path} is a private key, which has no place on a robot; give the public one of the pair.")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path} holds no public key in PEM; {MAKE_PUBLIC}.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"the public key {path} is not of the kind Ed25519; {MAKE_PUBLIC}.")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return what names a key: the SHA-256, in hex, of its DER form (`openssl pkey -pubin -outform DER`)."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def is_signed(folder: Path) -> bool:
    """Whether the bundle carries a signature, valid or not."""
    return (folder / SIGNATURE).is_file()


def sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Sign the bundle.json of a folder that nobody reads yet."""
    (folder / SIGNATURE).write_bytes(key.sign((folder / SPEC).read_bytes()))


def check_signature(folder: Path, description: bytes, key: Ed25519PublicKey) -> None:
    """Refuse a bundle that the key has not signed.

    Args:
        folder: the bundle.
        description: its bundle.json as it is going to be read.
        key: who has to have signed it.

    Raises:
        UserError: there is no signature, or it is not one of this description by this key.
    """
    if not is_signed(folder):
        raise UserError(
            f"{folder} is not signed, but only bundles signed by the key {fingerprint(key)} are taken; export it "
            "again with signing_key=PATH."
        )
    try:
        key.verify(read_bytes(folder / SIGNATURE), description)
    except InvalidSignature:
        raise UserError(
            f"{folder} was altered, or another key than {fingerprint(key)} signed it; do not run it, and copy it "
            "again from where it was signed."
        ) from None
