"""Children are started, watched and stopped as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.errors import UserError
from sim import supervisor
from sim.supervisor import Supervisor, interruptible

TIMEOUT = 30.0

# Says that it is ready, writes its end into a file that all children share, and obeys SIGTERM unless it is stubborn.
CHILD = """
import os, pathlib, signal, sys, time
def end(*_):
    with open("ends", "a") as file: file.write(sys.argv[1] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else end)
if "deaf" in sys.argv: print("cannot hear"); print("no port"); sys.exit(3)
print(f"here I am {os.getpid()}")
if "short" in sys.argv: sys.exit(0)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "child.py").write_text(CHILD)
    return tmp_path


def supervise(folder: Path) -> Supervisor:
    return Supervisor(folder, {"PYTHONPATH": str(folder)}, stop_order=("b", "a", "c"))


def start(children: Supervisor, name: str, *words: str) -> int:
    """Start a child and return its process id."""
    children.start(name, "child", [name, *words], ready="here I am")
    return int(children.log(name).read_text().split()[-1])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether no process of that id runs; one that ended but was not waited for by init does not."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_children_stop_in_the_order_given(folder: Path) -> None:
    with supervise(folder) as children:
        pids = [start(children, name) for name in "abc"]
        assert all(children.running(name) for name in "abc")
    assert (folder / "ends").read_text().split() == ["b", "a", "c"]
    assert all(gone(pid) for pid in pids)


def test_child_that_does_not_obey_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT", 0.2)
    with supervise(folder) as children:
        stubborn, _ = start(children, "a", "stubborn"), start(children, "b")
    assert gone(stubborn)
    assert (folder / "ends").read_text().split() == ["b"]


def test_child_that_was_killed_is_named_with_its_last_words(folder: Path) -> None:
    with supervise(folder) as children:
        killed, _ = start(children, "a"), start(children, "b")
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(
            UserError, match=rf"^the a process was ended by SIGKILL while .*a\.log ends with: here I am {killed}$"
        ):
            wait_for(lambda: not children.running("b"))
    assert (folder / "ends").read_text().split() == ["b"]


def test_child_that_fails_at_its_start_is_named(folder: Path) -> None:
    with supervise(folder) as children, pytest.raises(UserError, match=r"exit code 3 .*: cannot hear / no port$"):
        start(children, "a", "deaf")


def test_child_that_never_gets_ready_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT", 0.5)
    with supervise(folder) as children, pytest.raises(UserError, match=r"^the a process was not ready within 0.5 s"):
        children.start("a", "child", ["a"], ready="something else")


def test_child_may_end_well_where_that_is_asked_about(folder: Path) -> None:
    with supervise(folder) as children:
        start(children, "a", "short")
        wait_for(lambda: not children.running("a"))
        with pytest.raises(UserError, match="the a process ended with exit code 0"):
            children.check()


def test_interruption_stops_the_children_in_order(folder: Path) -> None:
    with interruptible(), pytest.raises(KeyboardInterrupt), supervise(folder) as children:
        start(children, "a"), start(children, "b")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIMEOUT)
    assert (folder / "ends").read_text().split() == ["b", "a"]


def test_nobody_outlives_a_parent_that_is_killed(folder: Path) -> None:
    code = (
        "import pathlib, time; from sim.supervisor import Supervisor\n"
        "children = Supervisor(pathlib.Path('.'), {'PYTHONPATH': '.'}, ('a', 'b'))\n"
        "for name in 'ab': children.start(name, 'child', [name, 'stubborn'], 'here I am')\n"
        "print('both', flush=True); time.sleep(60)"
    )
    root = Path(supervisor.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "both\n"
        pids = [int((folder / f"{name}.log").read_text().split()[-1]) for name in "ab"]
        assert not any(gone(pid) for pid in pids)
        parent.kill()
    wait_for(lambda: all(gone(pid) for pid in pids))
