"""`surefoot inspect`: what a bundle is, and whether it is whole."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapters.command import command
from deploy.bundle import Bundle
from deploy.signature import is_signed
from deploy.spec import BundleSpec, RobotDescription


def show(bundle: Bundle, console: Console) -> None:
    """Print what a bundle is; that it was loaded means that what can be checked is right."""
    spec = bundle.manifest
    console.print(f"[bold]{escape(bundle.path.name)}[/bold] {_verdict(bundle)}")
    console.print(_facts(bundle))
    console.print(_observations(spec.robot))
    console.print(_commands(spec.robot))
    if not bundle.lone:
        console.print(_files(bundle))
    if (report := bundle.validation()) is not None:
        console.print(_validation(report))


def _verdict(bundle: Bundle) -> str:
    """What was checked, and what could not be."""
    if not bundle.lone:
        return "is whole: hashes, shapes and golden rows are right."
    unchecked = "is a lone file: its shapes are right; hashes, golden rows and signature could not be checked."
    if not bundle.manifest.adapts:
        return unchecked
    return f"{unchecked} It has no dynamics to infer context and delay with, so it runs with context=nominal alone."


def _signature(bundle: Bundle) -> str:
    if bundle.signed_by is not None:
        return f"valid, by the key {bundle.signed_by}"
    if bundle.lone:
        return "a lone file carries none"
    return "not checked, give public_key=PATH" if is_signed(bundle.path) else "none: anyone may have made it"


def _facts(bundle: Bundle) -> Table:
    """One line for each fact about the whole."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    identity = (("file" if bundle.lone else "bundle", bundle.sha256), ("signature", _signature(bundle)))
    for name, value in (*_origin(bundle.manifest), *_behaviour(bundle.manifest), *identity):
        table.add_row(name, value)
    return table


def _origin(spec: BundleSpec) -> Iterator[tuple[str, str]]:
    provenance = spec.provenance
    yield "algorithm", f"{provenance.algorithm}, seed {provenance.seed}"
    yield "environment", spec.env
    yield "data set", provenance.dataset_sha256 or "none, trained in a simulator"
    yield "commit", provenance.commit or "not known"
    yield "made with", ", ".join(f"{name} {version}" for name, version in provenance.versions.items()) or "not known"
    yield "schema", str(spec.schema_version)


def _behaviour(spec: BundleSpec) -> Iterator[tuple[str, str]]:
    robot, context = spec.robot, spec.context
    yield "robot", f"{robot.name}: {robot.obs_dim} observations, {robot.act_dim} commands"
    yield "control period", f"{robot.control_dt:g} s ({1 / robot.control_dt:g} Hz)"
    rate = robot.limits.rate
    change = "at any rate" if rate is None else f"by at most {rate:g} per second"
    yield "commands", f"{robot.action.law} in {robot.action.unit}, changing {change}"
    ahead = 0 if spec.plan is None else spec.plan.horizon
    yield "plan", f"every command is planned {ahead} steps ahead" if ahead else "the policy acts by itself"
    most = 0 if spec.delay is None else spec.delay.most
    yield "delay", f"found and made up for, to {most} control periods" if most else "commands are taken to act at once"
    if spec.caution is not None:
        least = f"{spec.caution.least:g}"
        yield "caution", f"commands down to {least} of the policy's for a body that has become light"
    if spec.prior is not None:
        yield (
            "confidence",
            f"1 where the prior's deviation is {spec.prior.near:.3g}, 0 where it is {spec.prior.far:.3g}",
        )
    if context is None:
        yield "context", "none: the policy does not adapt"
        return
    yield "context", f"{context.kind}, {context.dim} numbers, nominal {_span(context.nominal)}"
    if context.pushed:
        yield "pushes told", ", ".join(robot.observation_names[term] for term in context.pushed)
    yield "context range", f"low {_span(context.low)}, high {_span(context.high)}"
    settings = ", ".join(f"{name}={value}" for name, value in context.settings.items()) or "default settings"
    yield "estimator", f"{context.estimator}, {settings}"


def _span(values: Iterable[float]) -> str:
    """A number that all share, or the range that they are in."""
    smallest, largest = min(values), max(values)
    return f"{smallest:g}" if smallest == largest else f"{smallest:g} to {largest:g}"


def _observations(robot: RobotDescription) -> Table:
    table = Table("", "observation", "source", "unit", "scale", "clip", "limit")
    for index, term in enumerate(robot.observations):
        clip = "" if term.clip is None else f"{term.clip[0]:g} to {term.clip[1]:g}"
        limit = _limit(robot, term.source, term.joints)
        table.add_row(str(index), term.name, term.source, term.unit, f"{term.scale:g}", clip, limit)
    return table


def _limit(robot: RobotDescription, source: str, joints: tuple[str, ...]) -> str:
    """The limit of an observation term in words, empty where it has none."""
    limits = robot.limits
    if source == "tilt" and limits.tilt is not None:
        return f"±{limits.tilt:g}"
    for joint in joints:
        if source == "joint_position" and joint in (limits.position or {}):
            return "{:g} to {:g}".format(*(limits.position or {})[joint])
        by_joint = {"joint_velocity": limits.velocity, "joint_effort": limits.effort}.get(source) or {}
        if joint in by_joint:
            return f"±{by_joint[joint]:g}"
    return ""


def _commands(robot: RobotDescription) -> Table:
    action = robot.action
    table = Table("", f"{action.law} of", "low", "high")
    for index, (joint, low, high) in enumerate(zip(action.joints, action.low, action.high, strict=True)):
        table.add_row(str(index), joint, f"{low:g}", f"{high:g}")
    return table


def _files(bundle: Bundle) -> Table:
    table = Table("file", "bytes", "sha256")
    for name, digest in bundle.manifest.files.items():
        table.add_row(name, f"{(bundle.path / name).stat().st_size:,}", digest[:16] + "…")
    return table


def _validation(report: dict[str, Any]) -> Table:
    title = f"validation in {report['env']}: {report['episodes']} episodes in each of its worlds"
    table = Table("context", "mean return", "interquartile mean", title=title)
    for context, summary in report["summary"].items():
        table.add_row(context, f"{summary['return_mean']:.0f}", f"{summary['return_iqm']:.0f}")
    return table


@command("inspect")
def _inspect(config: DictConfig) -> None:
    """Check and print the bundle at `path`."""
    show(Bundle.load(config.path, config.public_key), Console())


def main() -> None:
    """Run the command; a bare path stands for path=PATH."""
    sys.argv[1:] = [_as_setting(argument) for argument in sys.argv[1:]]
    _inspect()


def _as_setting(argument: str) -> str:
    """Turn a bare path into a quoted Hydra setting, and leave everything else as it is."""
    if argument.startswith("-") or ("=" in argument and not Path(argument).exists()):
        return argument
    quoted = argument.replace("'", "\\'")
    return f"path='{quoted}'"
