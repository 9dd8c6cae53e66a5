"""What surefoot inspect prints, and what it refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from keypair import write_pair
from leg import dynamics_graph, golden, policy_graph, spec
from rich.console import Console

from deploy.bundle import Bundle, write_bundle
from deploy.inspect import _as_setting, show
from deploy.signature import fingerprint, read_public_key, read_signing_key


def printed(path: Path, public_key: Path | None = None) -> str:
    output = io.StringIO()
    show(Bundle.load(path, public_key), Console(width=120, file=output))
    return output.getvalue()


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "surefoot", "inspect", *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_says_what_the_bundle_is(write: Callable[..., Path]) -> None:
    path = write(rate=10.0, tilt=0.5, position={"knee": (-1.0, 1.0)}, velocity={"hip": 8.0})
    text = printed(path)
    for fact in (
        "leg.bundle is whole",
        "by-hand, seed 7",
        "c0ffee",
        "ab" * 32,
        "0.02 s (50 Hz)",
        "delta_scale, 5 numbers, nominal 1",
        "low 0.5, high 1.5",
        "scale, default settings",
        "changing by at most 10 per second",
        Bundle.load(path).sha256,
    ):
        assert fact in text
    rows = {
        cells[1]: cells
        for line in text.splitlines()
        if len(cells := [c.strip() for c in line.strip("│┃ ").split("│")]) > 2
    }
    assert rows["pitch"][-1] == "±0.5"
    assert rows["knee_position"][-1] == "-1 to 1"
    assert rows["hip_velocity"][-1] == "±8"
    assert rows["knee"][2:] == ["-1", "3"]


def test_bundle_that_does_not_adapt_says_so(write: Callable[..., Path]) -> None:
    assert "none: the policy does not adapt" in printed(write(context=False))


def test_validation_is_summed_up(tmp_path: Path) -> None:
    summary = {"nominal": {"return_mean": 4321.4, "return_iqm": 4400.6}}
    report = {"schema": 1, "env": "leg", "episodes": 10, "summary": summary}
    path = tmp_path / "leg.bundle"
    write_bundle(path, policy_graph(), spec(), golden(), dynamics_graph(), validation=report)
    text = printed(path)
    assert "validation in leg: 10 episodes" in text
    assert any("nominal" in line and "4321" in line and "4401" in line for line in text.splitlines())


def fact(text: str, name: str) -> str:
    """What stands beside a name."""
    (line,) = (line for line in text.splitlines() if line.startswith(f" {name} "))
    return line.removeprefix(f" {name} ").strip()


def test_says_who_signed(write: Callable[..., Path], tmp_path: Path) -> None:
    private, public = write_pair(tmp_path)
    assert fact(printed(write()), "signature") == "none: anyone may have made it"
    path = write(signing_key=read_signing_key(private))
    assert fact(printed(path), "signature") == "not checked, give public_key=PATH"
    assert fact(printed(path, public), "signature") == f"valid, by the key {fingerprint(read_public_key(public))}"


def test_lone_policy_says_what_could_not_be_checked(write: Callable[..., Path]) -> None:
    path = write() / "policy.onnx"
    text = " ".join(printed(path).split())
    assert "policy.onnx is a lone file" in text and "is whole" not in text
    assert "hashes, golden rows and signature could not be checked" in text
    assert "runs with context=nominal alone" in text
    assert fact(printed(path), "file") == Bundle.load(path).sha256
    assert fact(printed(path), "signature") == "a lone file carries none"
    assert "50 Hz" in text and "knee_velocity" in text
    assert "context=nominal" not in printed(write(context=False) / "policy.onnx")


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("a.bundle", "path='a.bundle'"),
        ("it's, here.bundle", "path='it\\'s, here.bundle'"),
        ("path=a.bundle", "path=a.bundle"),
        ("--help", "--help"),
    ],
)
def test_bare_path_becomes_the_setting(argument: str, setting: str) -> None:
    assert _as_setting(argument) == setting


def test_command_takes_either_form(write: Callable[..., Path]) -> None:
    path = write(context=False)
    odd = path.rename(path.parent / "it's lr=3, really.bundle")
    for done in (command(odd.name, cwd=path.parent), command(write(context=False).name, cwd=path.parent)):
        assert (done.returncode, done.stderr) == (0, "")
        assert "is whole" in done.stdout


def test_broken_bundle_is_one_sentence_and_exit_code_2(write: Callable[..., Path]) -> None:
    path = write(context=False)
    (path / "policy.onnx").write_bytes(b"")
    done = command(f"path={path.name}", cwd=path.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "policy.onnx is not the file that was written" in done.stderr


def test_signature_is_checked_on_the_command_line(write: Callable[..., Path], tmp_path: Path) -> None:
    private, public = write_pair(tmp_path)
    path = write(context=False, signing_key=read_signing_key(private))
    done = command(path.name, f"public_key={public.name}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid, by the key" in done.stdout
    (path / "signature").write_bytes(bytes(64))
    done = command(path.name, f"public_key={public.name}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "was altered, or another key than" in done.stderr
