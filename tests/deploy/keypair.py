"""Pairs of keys, as openssl would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def private_pem(key: Any, lock: Any = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock or NoEncryption())


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_key(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def write_pair(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Write NAME.pem, for its owner alone, and NAME.pub; return both paths."""
    key = Ed25519PrivateKey.generate()
    return write_key(folder / f"{name}.pem", private_pem(key)), write_key(folder / f"{name}.pub", public_pem(key))
