"""A joint fails while a HalfCheetah runs, with and without adaptation; policy, safety and robot talk through ROS 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from adapters.errors import UserError
from adapters.files import atomic_path, write_json
from adapters.progress import progress_bar
from deploy.bundle import Bundle
from deploy.controller import Controller
from sim.stack import StackSettings, run_ros2
from sim.validate import steps_to_90_percent
from sim.video import NoGraphicsError, write_video

# The motor of the front foot dies after 25 s of 50 s.
SETTINGS = {"suite": "joint-failure", "world": "dead-ffoot", "at_step": 500, "steps": 1000}
COLOURS = {"adapted": "#d9641e", "nominal": "#5b6b82"}
# Control steps over which the drawn speed is averaged.
SMOOTH = 20
NAMED_CONTEXTS = 4


@dataclass(frozen=True, eq=False)
class Trace:
    """One run, step by step.

    Attributes:
        observations: `(steps, obs_dim)`.
        actions: `(steps, act_dim)`, the commands that the robot got.
        rewards: `(steps,)`.
        speed: `(steps,)`, forward in m/s, mean of the step.
        context: `(steps, context_dim)`, as the policy read it.
        residual: `(steps,)`, what the estimate leaves unexplained, in predicted standard deviations.
        states: `(steps + 1, nstate)`, of the physics.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    speed: np.ndarray
    context: np.ndarray
    residual: np.ndarray
    states: np.ndarray


def joint_failure(settings: StackSettings, move: Callable[[int], Any] = lambda completed: None) -> dict[str, Any]:
    """Run the same episode with and without adaptation, and write down what happened.

    The output folder gets joint-failure.json, .png and .mp4, and for each run a folder with its trace.npz and all that
    `run_ros2` writes.

    Args:
        settings: of the run, `SETTINGS` among them; in lock step, so that the two differ in adaptation alone.
        move: called with the number of control steps so far.

    Returns:
        What joint-failure.json says: the returns and more of both runs, and why there is no video, if so.

    Raises:
        UserError: the bundle does not adapt, a process failed, or the place cannot be written.
    """
    bundle = Bundle.load(settings.bundle, settings.public_key)
    if bundle.manifest.context is None:
        raise UserError(f"{settings.bundle} reads no context, so it cannot adapt; give a bundle that does.")
    if settings.realtime:
        raise UserError("the scenario runs in lock step, so that its runs can be compared; leave out realtime=true.")
    adapted = _run(settings, bundle, "adapted", move)
    nominal = _run(settings, bundle, "nominal", lambda done: move(settings.steps + done))
    traces = {"adapted": adapted, "nominal": nominal}
    summary = _summary(settings, bundle, traces)
    _draw(settings.output / "joint-failure.png", summary, traces, bundle.manifest.context_names)
    video = settings.output / "joint-failure.mp4"
    video.unlink(missing_ok=True)
    try:
        write_video(
            video,
            bundle.manifest.env,
            {name: trace.states[:-1] for name, trace in traces.items()},
            {name: _captions(trace, summary) for name, trace in traces.items()},
        )
    except NoGraphicsError as error:
        summary["no_video"] = str(error)
    write_json(settings.output / "joint-failure.json", summary)
    return summary


def show_joint_failure(settings: StackSettings) -> None:
    """Run the scenario and print what happened."""
    with progress_bar("a joint fails, over ROS 2", 2 * settings.steps) as move:
        summary = joint_failure(settings, move)
    console = Console(highlight=False)
    console.print(table(summary))
    if "no_video" in summary:
        console.print(summary["no_video"], markup=False)
    console.print(f"traces, picture and video are in {settings.output}", markup=False)


def _run(settings: StackSettings, bundle: Bundle, name: str, move: Callable[[int], Any]) -> Trace:
    """Run one episode and write its trace."""
    changes = {"output": settings.output / name, "adapt": name == "adapted"}
    outcome = run_ros2(settings.model_copy(update=changes), move)
    controller = Controller(bundle, soft_start=settings.soft_start)
    controller.adapt = name == "adapted"
    trace = _trace(controller, outcome.record)
    with atomic_path(settings.output / name / "trace.npz") as draft, draft.open("wb") as file:
        np.savez(file, **vars(trace))
    return trace


def _trace(controller: Controller, record: Path) -> Trace:
    """Read a run's record, and compute again what the policy's process knew.

    A controller here that is shown the same observations has the same context, if it gives the same commands.
    """
    with np.load(record) as episode:
        observations, actions, rewards, states = (
            episode[name] for name in ("observations", "actions", "rewards", "states")
        )
    commands = [controller.step(k * controller.control_dt, obs) for k, obs in enumerate(observations)]
    if not np.array_equal([command.action for command in commands], actions):
        raise RuntimeError(f"the commands in {record} are not those of the controller")
    return Trace(
        observations=observations,
        actions=actions,
        rewards=rewards,
        speed=np.diff(states[:, 1]) / controller.control_dt,
        context=np.array([command.context for command in commands]),
        residual=np.array([np.nan if command.health is None else command.health.residual for command in commands]),
        states=states,
    )


def _summary(settings: StackSettings, bundle: Bundle, traces: Mapping[str, Trace]) -> dict[str, Any]:
    """What joint-failure.json says."""
    at_step = settings.at_step or 0
    assert bundle.manifest.context is not None
    nominal = np.array(bundle.manifest.context.nominal)
    return {
        "schema": 1,
        "bundle": bundle.sha256,
        "env": bundle.manifest.env,
        "world": settings.world,
        "at_step": at_step,
        "steps": settings.steps,
        "seed": settings.seed,
        "runs": {
            name: {
                "return_before": float(trace.rewards[:at_step].sum()),
                "return_after": float(trace.rewards[at_step:].sum()),
                "speed_before": float(trace.speed[:at_step].mean()),
                "speed_after": float(trace.speed[at_step:].mean()),
                "steps_adapted": int((trace.context != nominal).any(-1).sum()),
                "steps_to_90_percent": steps_to_90_percent(trace.context, at_step),
            }
            for name, trace in traces.items()
        },
    }


def table(summary: Mapping[str, Any]) -> Table:
    """Lay joint-failure.json out for the terminal."""
    shown = Table(
        title=f"{summary['env']}, {summary['world']} at step {summary['at_step']} of {summary['steps']}",
        caption="context moved: steps at which the policy read another context than the nominal one; there after: "
        "steps from the failure until it had gone 90 % of its way",
    )
    shown.add_column("run")
    for column in ("return before", "return after", "m/s before", "m/s after", "context moved", "there after"):
        shown.add_column(column, justify="right")
    for name, run in summary["runs"].items():
        returns = [f"{run[key]:.0f}" for key in ("return_before", "return_after")]
        speeds = [f"{run[key]:.2f}" for key in ("speed_before", "speed_after")]
        steps = run["steps_to_90_percent"]
        shown.add_row(name, *returns, *speeds, str(run["steps_adapted"]), "-" if steps is None else str(steps))
    return shown


def _draw(path: Path, summary: Mapping[str, Any], traces: Mapping[str, Trace], names: Sequence[str]) -> None:
    """Draw speed, residual and context over time as a PNG."""
    whole = Figure(figsize=(11, 9), dpi=130, layout="constrained")
    FigureCanvasAgg(whole)
    whole.suptitle("{env}: {world} at step {at_step}, seed {seed}".format(**summary), fontweight="bold")
    speed, residual, context = whole.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3))
    for name in ("nominal", "adapted"):
        trace = traces[name]
        smooth = np.convolve(trace.speed, np.full(SMOOTH, 1 / SMOOTH), mode="valid")
        speed.plot(np.arange(SMOOTH - 1, len(trace.speed)), smooth, color=COLOURS[name], label=name)
        residual.plot(trace.residual, color=COLOURS[name], label=name)
    speed.set_ylabel(f"forward speed in m/s,\nmean of {SMOOTH} steps")
    residual.set_ylabel("residual of the estimate,\nin standard deviations")
    residual.set_yscale("log")
    _draw_context(context, traces["adapted"].context - traces["nominal"].context, summary["at_step"], names)
    for axes in (speed, residual, context):
        axes.axvline(summary["at_step"], color="black", linestyle=":", label="the joint fails")
        axes.legend(loc="upper left", fontsize=8, ncols=3)
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    context.set_xlabel("control step")
    with atomic_path(path) as draft:
        whole.savefig(draft, format="png")


def _draw_context(axes: Axes, change: np.ndarray, at_step: int, names: Sequence[str]) -> None:
    """Draw what adaptation makes of the context; the dimensions that the failure moved most are named."""
    moved = np.abs(change[at_step:].mean(0) - change[:at_step].mean(0))
    named = np.argsort(moved)[-NAMED_CONTEXTS:]
    axes.plot(np.delete(change, named, axis=1), color="0.8", linewidth=0.7)
    for index in named:
        axes.plot(change[:, index], label=names[index])
    axes.axhline(0.0, color=COLOURS["nominal"], linestyle="--", label="nominal")
    axes.set_ylabel("context of the adapted run,\nless the nominal one")


def _captions(trace: Trace, summary: Mapping[str, Any]) -> list[str]:
    """A line for each frame."""
    worlds = ["" if step < summary["at_step"] else summary["world"] for step in range(len(trace.speed))]
    rows = zip(trace.speed, np.cumsum(trace.rewards), worlds, strict=True)
    return [
        f"step {step}   {speed:4.1f} m/s   return {total:.0f}   {world}"
        for step, (speed, total, world) in enumerate(rows)
    ]
