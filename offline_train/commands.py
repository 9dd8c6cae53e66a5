"""Commands of the command line as pieces of a larger measurement, each in a process and run once.

A finished one is not run again and an interrupted training goes on, so that the measurement can be stopped at any time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import UserError
from adapters.files import read_json, write_json
from adapters.progress import MoveBar

RESUMABLE = ("train", "upsample")


@dataclass(frozen=True)
class Piece:
    """One command.

    Attributes:
        output: what it writes, a folder or a file; its name is shown.
        words: after `surefoot`, `output=` among them.
    """

    output: Path
    words: Sequence[str]

    @property
    def result(self) -> Path:
        """What is there once it has finished."""
        if self.words[0] == "upsample":
            return self.output / "synthetic.npz"
        if self.words[0] == "train":
            fitted = "world_model" if "algorithm=none" in self.words else "policy"
            return self.output / f"{fitted}.safetensors"
        return self.output


def run_all(pieces: Sequence[Piece], workers: int, move: MoveBar, before: int = 0) -> None:
    """Run those that are not done, several side by side; what they say goes to NAME.log beside their output.

    Args:
        pieces: the commands, none of which needs another's result.
        workers: how many side by side.
        move: moves a progress bar that counts pieces.
        before: pieces done before these.

    Raises:
        UserError: a command fails, or its output was made by another one.
    """
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run_once, piece) for piece in pieces]
        try:
            for done, future in enumerate(as_completed(futures), before + 1):
                move(done, future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_once(piece: Piece) -> str:
    """Run a command unless it is done, and return its output's name.

    Raises:
        UserError: it fails, or the output was made by another one.
    """
    keep_command(_beside(piece.output, "json"), piece.words)
    if not piece.result.exists():
        resume = [f"resume={(piece.output / 'run.json').is_file()}"] if piece.words[0] in RESUMABLE else []
        surefoot([*piece.words, *resume], _beside(piece.output, "log"))
    return piece.output.name


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.name}.{suffix}")


def keep_command(place: Path, words: Sequence[str]) -> None:
    """Note what an output is made with, so that no figure of other settings gets into a table later on.

    Raises:
        UserError: it was made with something else.
    """
    if place.is_file() and read_json(place) != [*words]:
        raise UserError(
            f"{place.with_suffix('')} was made with other settings than those asked for now; remove it, or give "
            "another output=FOLDER."
        )
    write_json(place, [*words])


def surefoot(words: Sequence[str], output: Path) -> None:
    """Run a command of the command line in a process of its own.

    Args:
        words: after `surefoot`.
        output: file for what it prints.

    Raises:
        UserError: it fails.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as file:
        done = subprocess.run([sys.executable, "-m", "surefoot", *words], stdout=file, stderr=file, check=False)
    if done.returncode:
        lines = output.read_text().splitlines() or ["it said nothing"]
        raise UserError(f"'surefoot {' '.join(words)}' failed, {output} has all that it said: {lines[-1]}")
