"""Child processes that are started one after another, watched, and stopped in order; none outlives this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from adapters.errors import UserError

POLL, START_TIMEOUT, STOP_TIMEOUT = 0.02, 60.0, 10.0
TAIL_LINES = 3
PR_SET_PDEATHSIG = 1
# Loaded ahead: between fork and exec a child should do as little as it can.
_LIBC = ctypes.CDLL(None)


class Supervisor:
    """Runs Python modules as child processes.

    A context manager: at its end, whatever ends it, every child is stopped. Should this process be killed, the kernel
    kills the children.

    Args:
        folder: where each child's output goes, as NAME.log.
        environment: variables that the children get on top of this process's own.
        stop_order: the names of all children, in the order in which they are stopped.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], stop_order: Sequence[str]) -> None:
        self._folder, self._stop_order = folder, stop_order
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def log(self, name: str) -> Path:
        """Return the file of a child's output."""
        return self._folder / f"{name}.log"

    def start(self, name: str, module: str, arguments: Sequence[str], ready: str, refused: str | None = None) -> None:
        """Start a child and wait until it is ready.

        Args:
            name: what it is called in messages and logs.
            module: what Python runs.
            arguments: its command line.
            ready: text that it writes when it is.
            refused: text that it writes when it never will be.

        Raises:
            UserError: it refused, it or another ended before, or it took too long.
        """
        parent = os.getpid()
        with self.log(name).open("wb") as output:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal reaches this process alone, which then stops the children in order.
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )
        deadline = time.monotonic() + START_TIMEOUT
        while ready not in (said := self.log(name).read_text(errors="replace")):
            self.check()
            if refused is not None and refused in said:
                raise UserError(f"the {name} process does not start; {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise UserError(
                    f"the {name} process was not ready within {START_TIMEOUT:g} s; {self._last_words(name)}"
                )
            time.sleep(POLL)

    def running(self, name: str) -> bool:
        """Whether a child still runs; one that ended well does not.

        Raises:
            UserError: this child or another one failed.
        """
        self.check(name)
        return self._children[name].poll() is None

    def check(self, may_end: str = "") -> None:
        """Raise a UserError if a child has ended; `may_end` names one that may, with exit code 0."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None and (code != 0 or name != may_end):
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise UserError(f"the {name} process {how} while it was needed; {self._last_words(name)}")

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a child; after SIGKILL, wait for its end."""
        self._children[name].send_signal(number)
        if number == signal.SIGKILL:
            self._children[name].wait()

    def pid(self, name: str) -> int:
        """Return a child's process id."""
        return self._children[name].pid

    def alive(self, name: str) -> bool:
        """Whether a child was started and has not ended."""
        return name in self._children and self._children[name].poll() is None

    def dismiss(self, name: str) -> int:
        """End a child, if it has not, and return its exit code; it is not missed from then on."""
        child = self._children.pop(name)
        child.terminate()
        try:
            return child.wait(STOP_TIMEOUT)
        finally:
            child.kill()

    def _last_words(self, name: str) -> str:
        lines = [line.strip() for line in self.log(name).read_text(errors="replace").splitlines() if line.strip()]
        return f"its log {self.log(name)} ends with: {' / '.join(lines[-TAIL_LINES:]) or '(nothing)'}"

    def stop(self) -> None:
        """Stop the children one after another, each first asked to by SIGTERM, then killed."""
        children = [self._children[name] for name in self._stop_order if name in self._children]
        try:
            for child in children:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(STOP_TIMEOUT)
        finally:
            # Also where a second Ctrl-C cuts the waiting short.
            for child in children:
                child.kill()
                child.wait()


def _die_with(parent: int) -> None:
    """Let the kernel kill this child when the process that starts it dies, however that happens."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
