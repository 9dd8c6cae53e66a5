"""Files that are either whole or absent: atomic writes, hashes and JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.errors import UserError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, a file or a folder, that takes its place only if the block succeeds.

    Args:
        path: the final name; its parent folder is made where it is missing.

    Yields:
        A path to write to. Whatever stands there is removed if the block raises.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        draft = staging / path.name
        yield draft
        _sync(draft)
        if draft.is_dir() and path.is_dir():
            # A folder cannot replace a folder that is not empty in one call, so the old one steps aside first.
            os.replace(path, staging / "previous")
        os.replace(draft, path)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise UserError(
            f"cannot write {path}: {reason}; nothing was left under that name that was not there."
        ) from error
    finally:
        if staging is not None:
            if (previous := staging / "previous").exists() and not path.exists():
                os.replace(previous, path)
            shutil.rmtree(staging, ignore_errors=True)


def _sync(draft: Path) -> None:
    """Flush a file, or every file of a folder, to the disk before it takes its final name."""
    for file in [draft] if draft.is_file() else [p for p in draft.rglob("*") if p.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(handle)


def _sha256(handle: Any) -> str:
    """`hashlib.file_digest` for Python 3.10."""
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically.

    Raises:
        UserError: the place cannot be written.
        ValueError: the content holds a number that JSON has no word for (NaN or infinity).
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as draft:
        draft.write_text(text)


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; check the path.") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path and its permissions.") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON.
    """
    return parse_json(read_bytes(path), str(path))


def parse_json(text: str | bytes, source: str) -> Any:
    """Read JSON from text.

    Args:
        text: the JSON, UTF-8 where it is bytes.
        source: where it is from, for the message.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError covers what is no JSON and what is no UTF-8
        raise UserError(f"{source} is not valid JSON ({error}); it may be cut short, make it again.") from error


def read_jsonl(path: Path) -> list[Any]:
    """The whole lines of a file of JSON lines; a last line cut by a crash is left out, a missing file has none.

    Raises:
        UserError: another line is not JSON.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        return [parse_json(line, f"a line of {path}") for line in lines[:-1]]
