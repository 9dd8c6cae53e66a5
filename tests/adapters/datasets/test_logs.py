"""One battery for every form of a robot's log: what a robot did is read bit for bit, and nothing is bridged."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lcm
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_forms import (
    DT,
    LOG_FORMS,
    NS,
    TYPES,
    LogForm,
    Step,
    bag_entries,
    command,
    commanded,
    diagnosed,
    event,
    layout,
    lcm_events,
    message,
    observation,
    write_bag,
)
from rosbags.rosbag2 import StoragePlugin

from adapters.datasets import TransitionDataset, load_dataset, save_npz
from adapters.datasets.lcmlog import FINGERPRINTS, read_events
from adapters.errors import UserError
from deploy.lcm.generated.surefoot import command_t, observation_t
from deploy.ros2.bag import Bag

# Most logs here are read without a task; one test is about that.
pytestmark = pytest.mark.filterwarnings("ignore:.*holds no rewards")

STEPS = 12
START = 1_000.0


def steps(count: int = STEPS, start: float = START) -> list[Step]:
    """A robot that is observed once in a control period, with numbers that float32 holds."""
    generator = np.random.default_rng(3)
    seen, actions = generator.standard_normal((count, 3)), generator.uniform(-1, 1, (count, 2))
    return [Step(start + DT * k, seen[k].astype(np.float32), actions[k].astype(np.float32)) for k in range(count)]


@pytest.fixture(params=LOG_FORMS)
def form(request: pytest.FixtureRequest) -> LogForm:
    """Return every form of a log in turn."""
    return LOG_FORMS[request.param]


def load(path: Path, task: Any = None) -> TransitionDataset:
    return load_dataset(path, env="toy", control_dt=DT, layout=layout(task))


def refusal(path: Path) -> str:
    """Load what must be refused, and return the one sentence."""
    with pytest.raises(UserError) as caught:
        load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.endswith(".")
    return sentence


def rows_of(dataset: TransitionDataset, log: list[Step]) -> list[int]:
    """Return which steps of the log the rows are, and check that each is whole and leads to the next."""
    rows = []
    for k in range(len(dataset)):
        row = next(i for i, step in enumerate(log) if np.array_equal(step.observation, dataset.observations[k]))
        np.testing.assert_array_equal(dataset.actions[k], log[row].action)
        np.testing.assert_array_equal(dataset.next_observations[k], log[row + 1].observation)
        rows.append(row)
    return rows


@pytest.fixture
def quiet() -> Iterator[None]:
    """Leave out the warning that a log holds no rewards; every other one fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*holds no rewards")
        yield


def test_reads_back_bit_for_bit(form: LogForm, tmp_path: Path, quiet: None) -> None:
    log = steps()
    dataset = load(form.write(log, tmp_path))
    # The last observation has no successor, so it begins no transition.
    assert rows_of(dataset, log) == list(range(STEPS - 1))
    assert dataset.timeouts.tolist() == [False] * (STEPS - 2) + [True]
    assert not dataset.terminals.any()
    assert not dataset.rewards.any()
    metadata = dataset.metadata
    assert (metadata.env, metadata.control_dt) == ("toy", DT)
    assert (metadata.observation_names, metadata.action_names) == (("height", "hip", "knee"), ("hip", "knee"))


def test_every_form_gives_the_same_data_and_survives_as_npz(tmp_path: Path, quiet: None) -> None:
    hashes = set()
    for name, form in LOG_FORMS.items():
        (tmp_path / name).mkdir()
        dataset = load(form.write(steps(), tmp_path / name))
        save_npz(dataset, tmp_path / "log.npz")
        assert load_dataset(tmp_path / "log.npz").metadata == dataset.metadata
        hashes.add(dataset.metadata.sha256)
    assert len(hashes) == 1


def test_missing_rewards_are_said(form: LogForm, tmp_path: Path) -> None:
    path = form.write(steps(), tmp_path)
    with pytest.warns(UserWarning, match=f"{path} holds no rewards, so they are 0; surefoot collect"):
        load(path)


def test_missing_period_ends_the_episode(form: LogForm, tmp_path: Path) -> None:
    log = steps()
    del log[5]
    with pytest.warns(UserWarning, match="of 10 pairs of observations 1 were not one control period apart"):
        dataset = load(form.write(log, tmp_path))
    # Steps 4 and 6 are two periods apart: what led from 4 to 6 took two commands, so row 4 is none.
    assert rows_of(dataset, log) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert np.flatnonzero(dataset.timeouts).tolist() == [3, 8]


def test_controller_that_does_not_run_ends_the_episode(form: LogForm, tmp_path: Path) -> None:
    log = [step._replace(running=k not in (4, 5)) for k, step in enumerate(steps())]
    with pytest.warns(UserWarning, match="2 had no command of a running controller between them"):
        dataset = load(form.write(log, tmp_path))
    assert rows_of(dataset, log) == [0, 1, 2, 3, 6, 7, 8, 9, 10]
    assert np.flatnonzero(dataset.timeouts).tolist() == [3, 8]


def test_observation_that_is_not_finite_ends_the_episode(form: LogForm, tmp_path: Path) -> None:
    log = steps()
    log[5] = log[5]._replace(observation=np.array([0.0, np.nan, 0.0], np.float32))
    with pytest.warns(UserWarning, match="2 were not finite"):
        dataset = load(form.write(log, tmp_path))
    assert rows_of(dataset, log) == [0, 1, 2, 3, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("form", "jump"),
    # A bag is in the order of its own clock, so there time cannot go back.
    [("lcm", -100.0), ("lcm", -5 * DT), *((form, jump) for form in LOG_FORMS for jump in (0.5 * DT, 50.0))],
    indirect=["form"],
)
def test_clock_that_jumps_ends_the_episode(form: LogForm, tmp_path: Path, jump: float) -> None:
    log = [step._replace(time=step.time + (jump if k > 5 else 0.0)) for k, step in enumerate(steps())]
    with pytest.warns(UserWarning, match="were not one control period apart"):
        dataset = load(form.write(log, tmp_path))
    assert 5 not in rows_of(dataset, log)


class Task:
    """Worth the height; over where that is above 100 m."""

    def reward(self, observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        return next_observations[:, 0] - actions[:, 0]

    def terminated(self, observations: np.ndarray) -> np.ndarray:
        return observations[:, 0] > 100


def test_task_gives_rewards_and_ends(form: LogForm, tmp_path: Path) -> None:
    log = steps()
    for k in (6, 7):
        log[k] = log[k]._replace(observation=np.array([200.0 + k, 0.0, 0.0], np.float32))
    with pytest.warns(UserWarning, match="2 came after the end of the episode"):
        dataset = load(form.write(log, tmp_path), Task())
    assert rows_of(dataset, log) == [0, 1, 2, 3, 4, 5, 8, 9, 10]
    assert np.flatnonzero(dataset.terminals).tolist() == [5]
    assert np.flatnonzero(dataset.timeouts).tolist() == [8]
    np.testing.assert_array_equal(dataset.rewards[:2], [log[k + 1].observation[0] - log[k].action[0] for k in (0, 1)])


def test_log_without_a_transition(form: LogForm, tmp_path: Path) -> None:
    log = [step._replace(running=False) for step in steps()]
    assert "holds no transition: of 11 pairs of observations 11 had no command" in refusal(form.write(log, tmp_path))


def test_log_with_one_observation(form: LogForm, tmp_path: Path) -> None:
    assert "is as good as empty: it holds 1 whole observations" in refusal(form.write(steps(1), tmp_path))


def test_control_period_has_to_be_given(form: LogForm, tmp_path: Path) -> None:
    path = form.write(steps(), tmp_path)
    with pytest.raises(UserError, match="does not say its control period"):
        load_dataset(path, env="toy", layout=layout())


def test_empty_file(form: LogForm, tmp_path: Path) -> None:
    path = form.write(steps(), tmp_path)
    form.main_file(path).write_bytes(b"")
    assert "empty" in refusal(path)


def test_file_that_is_something_else(form: LogForm, tmp_path: Path) -> None:
    path = form.write(steps(), tmp_path)
    form.main_file(path).write_text("not a data set\n" * 100)
    assert "is no LCM log" in refusal(path) or "damaged" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_closed_bag_that_was_cut_short(tmp_path: Path, share: float) -> None:
    for name in ("mcap", "sqlite3"):
        (tmp_path / name).mkdir()
        path = LOG_FORMS[name].write(steps(), tmp_path / name)
        file = LOG_FORMS[name].main_file(path)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        assert "was cut short or damaged" in refusal(path)


@pytest.fixture
def whole_file(form: LogForm, tmp_path: Path) -> Path:
    """Return the file of a log."""
    return form.main_file(form.write(steps(), tmp_path))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_answered_by_a_sentence_or_by_rows(whole_file: Path, tmp_path: Path, data: Any) -> None:
    content = bytearray(whole_file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{whole_file.suffix}"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, 2 * len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert len(load(path)) < STEPS
        except UserError as error:
            assert str(error).endswith(".")


# LCM logs.


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.3, 1.0, exclude_max=True))
def test_lcm_log_that_was_cut_short_is_read_up_to_there(tmp_path: Path, share: float) -> None:
    events = lcm_events(steps())
    size = int(share * sum(map(len, events)))
    path = tmp_path / "log.lcm"
    path.write_bytes(b"".join(events)[:size])
    whole = [k for k in range(len(events)) if sum(map(len, events[: k + 1])) <= size]
    seen = sum(k % 2 == 0 for k in whole)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load(path)
    assert rows_of(dataset, steps()) == list(range(seen - 1))
    left = size - sum(map(len, events[: len(whole)]))
    said = [str(warning.message) for warning in caught if "cut short" in str(warning.message)]
    assert said == (
        [f"{path} was cut short: its last {left} bytes are part of an event and were left out."] if left else []
    )


def test_lcms_own_event_log_is_read(tmp_path: Path, quiet: None) -> None:
    path = tmp_path / "lcmlog-2026-11-21.00"
    log = lcm.EventLog(str(path), "w")
    for k, step in enumerate(steps()):
        log.write_event(k, "SUREFOOT_OBSERVATION", observation(step.time, k, k - 1, step.observation))
        log.write_event(k, "SOMETHING_ELSE", b"whatever")
        log.write_event(k, "SUREFOOT_COMMAND", command(k, step.action))
    log.close()
    assert rows_of(load(path), steps()) == list(range(STEPS - 1))
    assert [channel for channel, _ in read_events(path)].count(b"SOMETHING_ELSE") == STEPS


def test_types_are_those_that_are_read() -> None:
    expected = {b"SUREFOOT_OBSERVATION": observation_t().get_hash(), b"SUREFOOT_COMMAND": command_t().get_hash()}
    assert expected == FINGERPRINTS


def test_messages_of_other_types_are_refused(tmp_path: Path) -> None:
    events = lcm_events(steps())
    events[3] = event(3, "SUREFOOT_COMMAND", b"\x01" + command(0, np.zeros(2))[1:])
    path = tmp_path / "log.lcm"
    path.write_bytes(b"".join(events))
    assert "of another type than this Surefoot's" in refusal(path)


def test_lcm_log_needs_no_layout(tmp_path: Path, quiet: None) -> None:
    dataset = load_dataset(LOG_FORMS["lcm"].write(steps(), tmp_path), env="toy", control_dt=DT)
    # As the messages name them: the commands come knee first.
    assert dataset.metadata.action_names == ("knee", "hip")
    np.testing.assert_array_equal(dataset.actions[3], steps()[3].action[::-1])


def test_the_command_that_acted_is_the_one_of_which_the_robot_says_so(tmp_path: Path) -> None:
    log = steps()
    events = lcm_events(log)
    # In period 4 the safe command acted; in period 7 that of period 6 still did.
    for period, applied in ((4, -1), (7, 106)):
        following = log[period + 1]
        seen = observation(following.time, period + 1, applied, following.observation)
        events[2 * (period + 1)] = event(0, "SUREFOOT_OBSERVATION", seen)
    # An observation that is sent again is still one, and bytes that are none change nothing.
    events[10:10] = [events[8], event(0, "SUREFOOT_OBSERVATION", b""), event(0, "SUREFOOT_COMMAND", b"\x00" * 5)]
    path = tmp_path / "log.lcm"
    path.write_bytes(b"".join(events))
    with pytest.warns(UserWarning, match="1 had no command of a running controller"):
        dataset = load(path)
    log[7] = log[7]._replace(action=log[6].action)
    assert rows_of(dataset, log) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_lcm_log_of_another_robot(tmp_path: Path) -> None:
    seen = observation_t()
    seen.names, seen.values, seen.size = ["height", "hip"], [0.0, 1.0], 2
    path = tmp_path / "log.lcm"
    path.write_bytes(event(0, "SUREFOOT_OBSERVATION", seen.encode()) * 2)
    assert "has no 'knee', only height, hip; give the robot that it is from" in refusal(path)


# Bags of ROS 2.

WriteBag = Callable[[list[Any]], Path]


@pytest.fixture
def write_mcap(tmp_path: Path) -> WriteBag:
    """Return a function that writes a bag of entries."""
    return lambda entries: write_bag(entries, tmp_path / "log", StoragePlugin.MCAP)


def test_bag_needs_a_layout(write_mcap: WriteBag) -> None:
    path = write_mcap(bag_entries(steps()))
    with pytest.raises(UserError, match=f"surefoot collect bag={path} robot=NAME"):
        load_dataset(path, env="toy", control_dt=DT)


def test_two_commands_in_a_period_are_none_unless_they_are_the_same(write_mcap: WriteBag) -> None:
    log = steps()
    entries = bag_entries(log)
    entries.append((log[3].time + 0.01, "/commands", commanded(np.array([0.5, 0.5]))))
    entries.append((log[6].time + 0.01, "/commands", commanded(log[6].action)))
    with pytest.warns(UserWarning, match="1 had no command"):
        dataset = load(write_mcap(entries))
    assert rows_of(dataset, log) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_messages_in_any_order_and_namespace(write_mcap: WriteBag, quiet: None) -> None:
    entries = bag_entries(steps())
    order = np.random.default_rng(0).permutation(len(entries))
    moved = [(time, f"/left{topic}" if topic != "/diagnostics" else topic, content) for time, topic, content in entries]
    dataset = load(write_mcap([moved[i] for i in order]))
    assert rows_of(dataset, steps()) == list(range(STEPS - 1))


def test_without_the_safety_nodes_commands_the_policys_count_and_that_is_said(write_mcap: WriteBag) -> None:
    entries = [entry for entry in bag_entries(steps()) if entry[1] != "/commands"]
    with pytest.warns(UserWarning, match="what the policy wanted counts as what the robot did"):
        dataset = load(write_mcap(entries))
    np.testing.assert_array_equal(dataset.actions[2], -steps()[2].action)


def test_the_safety_nodes_commands_are_those_of_the_robots_controller(write_mcap: WriteBag, quiet: None) -> None:
    topics = {"/commands": "/forward_command_controller/commands"}  # what robot.launch.py makes of the name
    dataset = load(
        write_mcap([(time, topics.get(topic, topic), content) for time, topic, content in bag_entries(steps())])
    )
    np.testing.assert_array_equal(dataset.actions[2], steps()[2].action)


@pytest.mark.filterwarnings("ignore:.*what the policy wanted")
def test_topic_on_which_nobody_spoke_is_none(tmp_path: Path) -> None:
    log = steps()
    entries = [entry for entry in bag_entries(log) if entry[1] != "/commands"]
    bag = Bag(tmp_path / "log", "sqlite3", {topic: kind for _, topic, (kind, _) in bag_entries(log)})
    for time, topic, (kind, fields) in entries:
        bag.add(round(time * NS), topic, bytes(TYPES.serialize_cdr(message(kind, **fields), kind)))
    bag.close()
    np.testing.assert_array_equal(load(tmp_path / "log").actions[2], -log[2].action)


def test_without_diagnostics_the_controller_is_taken_to_have_run(write_mcap: WriteBag) -> None:
    entries = [entry for entry in bag_entries(steps()) if entry[1] != "/diagnostics"]
    with pytest.warns(UserWarning, match="no diagnostics of the policy, so its controller is taken to have run"):
        assert len(load(write_mcap(entries))) == STEPS - 1


def test_before_the_first_diagnostics_nothing_is_known(write_mcap: WriteBag) -> None:
    entries = bag_entries(steps())
    late = [entry for entry in entries if entry[1] != "/diagnostics" or entry[0] > steps()[4].time]
    with pytest.warns(UserWarning, match="4 had no command of a running controller"):
        assert rows_of(load(write_mcap(late)), steps()) == list(range(4, STEPS - 1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda topic: topic != "/odom", "holds no messages odom of type nav_msgs/msg/Odometry"),
        (lambda topic: "commands" not in topic, "holds no messages commands"),
    ],
)
def test_missing_topic(write_mcap: WriteBag, change: Callable[[str], bool], sentence: str) -> None:
    assert sentence in refusal(write_mcap([entry for entry in bag_entries(steps()) if change(entry[1])]))


def test_two_robots_in_a_bag(write_mcap: WriteBag) -> None:
    other = [(time, f"/other{topic}", content) for time, topic, content in bag_entries(steps())]
    assert "several topics joint_states: " in refusal(write_mcap(bag_entries(steps()) + other))


def test_bag_of_another_robot(write_mcap: WriteBag) -> None:
    entries = bag_entries(steps())
    for _, topic, (_, fields) in entries:
        fields |= {"name": ["left", "right"]} if topic == "/joint_states" else {}
    assert "joint_states lacks hip, knee" in refusal(write_mcap(entries))


def test_commands_of_another_size(write_mcap: WriteBag) -> None:
    entries = [entry for entry in bag_entries(steps()) if entry[1] != "/commands"]
    entries += [(step.time + 0.002, "/commands", commanded(np.zeros(3))) for step in steps()]
    assert "a command has 3 numbers where the robot takes 2" in refusal(write_mcap(entries))


def test_state_of_another_node_does_not_count(write_mcap: WriteBag, quiet: None) -> None:
    entries = bag_entries(steps())
    kind, fields = diagnosed("hold")
    fields["status"][1].name = "another"
    entries += [(step.time + 0.004, "/diagnostics", (kind, fields)) for step in steps()]
    assert len(load(write_mcap(entries))) == STEPS - 1


def test_rosbags_not_installed(write_mcap: WriteBag, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mcap(bag_entries(steps()))
    monkeypatch.setitem(sys.modules, "rosbags.rosbag2", None)
    assert "needs rosbags; install it with: pip install 'surefoot[logs]'" in refusal(path)


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95, 1.0])
def test_mcap_that_was_never_closed_is_read_up_to_its_last_whole_record(tmp_path: Path, share: float) -> None:
    log = steps(40)
    bag = Bag(tmp_path / "log", "mcap", {topic: kind for _, topic, (kind, _) in bag_entries(log)})
    for time, topic, (kind, fields) in bag_entries(log):
        bag.add(round(time * NS), topic, bytes(TYPES.serialize_cdr(message(kind, **fields), kind)))
        bag.flush()
    file = tmp_path / "log" / "log.mcap"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    for path in (file, file.parent):
        with pytest.warns(UserWarning, match="was not closed, as after a crash"):
            dataset = load(path)
        assert rows_of(dataset, log) == list(range(len(dataset)))
        assert len(dataset) == pytest.approx(39 * share, abs=4)


def test_sqlite3_that_was_killed_within_a_transaction_is_read_as_it_was_before(tmp_path: Path) -> None:
    path = write_bag(bag_entries(steps()), tmp_path / "log", StoragePlugin.SQLITE3)
    (path / "metadata.yaml").unlink()
    database = path / "log.db3"
    # A cache of one page makes sqlite write half a transaction to the file; then the process dies.
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size = 1'); "
        "c.execute('UPDATE messages SET data = zeroblob(5000)'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(database)], check=False, timeout=60)
    assert Path(f"{database}-journal").exists()
    before = database.read_bytes()
    with pytest.warns(UserWarning, match="was not closed"):
        dataset = load(path)
    assert rows_of(dataset, steps()) == list(range(STEPS - 1))
    assert database.read_bytes() == before
