"""One recorded run, replayed behind LCM: the same commands, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from recorded import record

from deploy.bundle import Bundle
from deploy.controller import State

if TYPE_CHECKING:
    from conftest import Peer, Process


def test_replay_over_lcm_is_bit_equal(
    write: Callable[..., Path], start_runner: Callable[..., Process], peer: Peer
) -> None:
    path = write(rate=50.0)
    moments = record(Bundle.load(path))
    # The run holds what can go wrong, and it teaches the estimator something.
    assert {int(moment.command.state) for moment in moments} == {State.RUNNING, State.HOLD}
    assert np.ptp([moment.command.context for moment in moments], axis=0).max() > 0.05
    start_runner(path, "--clock", "own", "--timeout", "60")
    for sequence, (stamp, values, command) in enumerate(moments):
        peer.send(sequence, values, stamp)
        answer = peer.answer(sequence)
        assert np.array(answer.action).tobytes() == command.action.tobytes()
        assert np.array(answer.context).tobytes() == command.context.tobytes()
        assert (answer.state, answer.reason, answer.stamp) == (command.state, command.explanation, stamp)
