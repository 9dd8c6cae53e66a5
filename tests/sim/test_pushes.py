"""Policies that are told what pushes the robot, over the controller, the worlds and the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle import Bundle
from deploy.controller import Controller
from sim.environments import make_environment
from sim.perturb import Perturbation
from sim.rollout import EpisodeResult, run_episodes

ENVIRONMENT = make_environment("halfcheetah")
NAMES = ENVIRONMENT.observation_names
TERMS = (NAMES.index("rootx_velocity"), NAMES.index("rootz_velocity"))


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Bundle:
    return Bundle.load(make_bundle(gains=True, pushed=TERMS, delay=True))


def run(bundle: Bundle, *worlds: Perturbation) -> EpisodeResult:
    return run_episodes(ENVIRONMENT, worlds, lambda plant: Controller(bundle, batch=(len(plant),)), 2, 0, 60)


def test_the_context_is_named_push_by_push_and_motor_by_motor(bundle: Bundle) -> None:
    names = bundle.manifest.context_names
    assert names == ("push on rootx_velocity", "push on rootz_velocity", *ENVIRONMENT.action_names)


def test_wind_is_told_as_a_push(bundle: Bundle) -> None:
    head, none, tail = (
        run(bundle, Perturbation(name="wind", external_force={"torso": (force, 0.0, 0.0)})).context
        for force in (-40.0, 0.0, 40.0)
    )
    assert head is not None and none is not None and tail is not None
    # 40 N on 14 kg change its speed by 0.14 m/s in 0.05 s; the toy dynamics know nothing of the ground.
    pushes = [context[0, :, -1, 0].mean() for context in (head, none, tail)]
    assert pushes[0] < pushes[1] - 0.01 < pushes[1] + 0.01 < pushes[2]


def test_what_the_motors_deliver_is_reckoned_without_the_pushes(bundle: Bundle) -> None:
    controller = Controller(bundle, batch=(2,))
    for step in range(5):
        told = controller.step(0.05 * step, np.full((2, len(NAMES)), 0.01 * step)).context
    assert told is not None
    np.testing.assert_array_equal(controller._gains(), told[:, 2:])
    assert controller.delay is not None and controller.delay.sent.shape[-1] == 6
