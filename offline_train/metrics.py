"""What a run keeps of its figures: one JSON object a line in `metrics.jsonl`, and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from adapters.errors import UserError
from adapters.files import atomic_path, read_jsonl


class MetricsLog:
    """Figures of one stage of a run, by step.

    A resumed run drops the lines beyond the step that it takes up, so that no step stands there twice.

    Args:
        folder: the run's folder.
        stage: what is being trained, for example "policy"; the prefix of every figure's name.
        resume_at: step that a resumed run takes up; 0 for a fresh one.
    """

    def __init__(self, folder: Path, stage: str, resume_at: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.stage, self.path = stage, folder / "metrics.jsonl"
        kept = [line for line in read_jsonl(self.path) if line["stage"] != stage or line["step"] <= resume_at]
        with atomic_path(self.path) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at or None)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the figures of one step; one that is not a number is kept as null."""
        kept = {name: finite(value) for name, value in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, **kept}) + "\n")
        for name, value in figures.items():
            self._board.add_scalar(f"{self.stage}/{name}", value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self._board.close()


def finite(value: float) -> float | None:
    """The number, None where JSON has none for it."""
    return value if math.isfinite(value) else None


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's figures that have a return.

    Raises:
        UserError: there are none, or a return is no number.
    """
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "return" in line]
    if not lines:
        raise UserError(f"{run} was never evaluated; set evaluation_episodes above 0.")
    for line in lines:
        if line["return"] is None:
            raise UserError(f"{run} has diverged: its return at update {line['step']:,} is no number; leave it out.")
    return lines
