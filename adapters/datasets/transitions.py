"""TransitionDataset: one robot's log in D4RL's layout, checked once, when it is made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters.datasets.checks import FIELDS, checked_arrays, episode_ends
from adapters.errors import UserError


@dataclass(frozen=True)
class Metadata:
    """What a data set is about.

    Attributes:
        env: environment or robot id, such as `halfcheetah`.
        control_dt: control period in seconds.
        observation_names: one name per observation dimension.
        action_names: one name per action dimension.
        source: where the data came from, in words.
        sha256: SHA-256 of the rows (`TransitionDataset.packed`, then `timeouts`), the same in every file format.
        synthetic: None for what a robot did. For rows that a model drew, what made them, as JSON: `source_sha256`, the
            hash of the data that it learned from, `config` and `seed`.
    """

    env: str = ""
    control_dt: float = 0.0
    observation_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    source: str = ""
    sha256: str = ""
    synthetic: dict[str, Any] | None = None

    def to_json(self) -> str:
        """Return it as a JSON string, as it stands in the files that Surefoot writes."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, file: object) -> Metadata:
        """Read what `to_json` wrote.

        Args:
            text: the JSON string.
            file: the name that an error message gives the data.

        Raises:
            UserError: it is something else.
        """
        try:
            content = json.loads(text)
            return cls(
                env=str(content["env"]),
                control_dt=float(content["control_dt"]),
                observation_names=tuple(map(str, content["observation_names"])),
                action_names=tuple(map(str, content["action_names"])),
                source=str(content["source"]),
                sha256=str(content["sha256"]),
                synthetic=content.get("synthetic"),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: the field 'metadata' is not what Surefoot writes ({error}); write it again."
            ) from error


@dataclass(frozen=True, eq=False)
class TransitionDataset:
    """Transitions of whole episodes, one after another; make it with `from_arrays`, which checks everything.

    Attributes:
        observations: `(N, obs_dim)` float32.
        actions: `(N, act_dim)` float32.
        rewards: `(N,)` float32.
        next_observations: `(N, obs_dim)` float32; within an episode, the following row of `observations`.
        terminals: `(N,)` bool, the episode is over and nothing follows: bootstrapping stops.
        timeouts: `(N,)` bool, the record stops here but the task would go on: bootstrapping goes on.
        metadata: what the data is about.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    metadata: Metadata

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], metadata: Metadata, file: str) -> TransitionDataset:
        """Check the arrays (see `checks.checked_arrays`) and make a data set of them.

        Args:
            arrays: one array for each of `checks.FIELDS`, shapes as in the class.
            metadata: what the data is about; its `sha256` is filled in, and missing names become `observation_0` and
                so on.
            file: the name that an error message gives the data.

        Raises:
            UserError: an array is malformed, or the metadata is incomplete or does not fit the arrays.
        """
        checked = checked_arrays(arrays, file)
        metadata = dataclasses.replace(
            metadata,
            observation_names=metadata.observation_names or _numbered("observation", checked["observations"]),
            action_names=metadata.action_names or _numbered("action", checked["actions"]),
        )
        _check_metadata(metadata, checked, file)
        dataset = cls(**checked, metadata=metadata)
        digest = hashlib.sha256(dataset.packed().tobytes() + dataset.timeouts.tobytes()).hexdigest()
        return dataclasses.replace(dataset, metadata=dataclasses.replace(metadata, sha256=digest))

    @classmethod
    def join(cls, datasets: Sequence[TransitionDataset]) -> TransitionDataset:
        """Put data sets of one robot one after another; where one simply stopped, its last row becomes a timeout.

        Raises:
            UserError: they are of different robots, control periods or terms, or made by different models.
        """
        first = datasets[0].metadata
        for other in (dataset.metadata for dataset in datasets[1:]):
            for field in ("env", "control_dt", "observation_names", "action_names", "synthetic"):
                if getattr(first, field) != getattr(other, field):
                    raise UserError(
                        f"the data sets cannot be joined: {field} is {getattr(first, field)} in one and "
                        f"{getattr(other, field)} in another; give logs of one robot."
                    )
        parts = [dataset.select_episodes(range(len(dataset.episode_slices()))).arrays() for dataset in datasets]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
        source = "; ".join(dataset.metadata.source for dataset in datasets)
        return cls.from_arrays(arrays, dataclasses.replace(first, source=source), file="the joined data sets")

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return self.observations.shape[1]

    @property
    def act_dim(self) -> int:
        """Size of an action."""
        return self.actions.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by field name, as `from_arrays` takes them."""
        return {name: getattr(self, name) for name in FIELDS}

    def episode_slices(self) -> list[slice]:
        """Return the rows of every episode; one ends at a terminal, at a timeout or at the end of the data."""
        stops = np.flatnonzero(episode_ends(self.terminals, self.timeouts)) + 1
        return [slice(int(start), int(stop)) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]

    def episode_returns(self) -> np.ndarray:
        """Return the undiscounted sum of rewards of every episode, `(episodes,)` float64."""
        starts = [rows.start for rows in self.episode_slices()]
        return np.add.reduceat(self.rewards.astype(np.float64), starts)

    def packed(self) -> np.ndarray:
        """Return the rows `[obs, action, reward, next_obs, terminal]`, `(N, 2 obs_dim + act_dim + 2)` float32.

        One array, so that a batch is one `index_select`.
        """
        columns = [
            self.observations,
            self.actions,
            self.rewards[:, None],
            self.next_observations,
            self.terminals[:, None].astype(np.float32),
        ]
        return np.concatenate(columns, axis=1)

    def select_episodes(self, indices: Sequence[int] | np.ndarray) -> TransitionDataset:
        """Return a data set of the episodes with these indices, in the order given.

        Every selected episode ends for itself: where the data simply stopped, the last row becomes a timeout.
        """
        slices = self.episode_slices()
        rows = [np.arange(slices[index].start, slices[index].stop) for index in indices]
        selected = np.concatenate(rows) if rows else np.empty(0, np.int64)
        arrays = {name: array[selected] for name, array in self.arrays().items()}
        if rows:
            lasts = np.cumsum([len(r) for r in rows]) - 1
            arrays["timeouts"][lasts] |= ~arrays["terminals"][lasts]
        return TransitionDataset.from_arrays(arrays, self.metadata, file="the selection of episodes")

    def subset(self, rows: int, generator: np.random.Generator) -> TransitionDataset:
        """Return a short log: episodes drawn at random, in the original order, the last one drawn cut to fit.

        Args:
            rows: how many.
            generator: draws the episodes.

        Raises:
            UserError: there are fewer.
        """
        if not 0 < rows <= len(self):
            raise UserError(f"{rows:,} rows are asked for and the data has {len(self):,}; ask for 1 to as many.")
        slices = self.episode_slices()
        drawn = generator.permutation(len(slices))
        lengths = np.array([slices[index].stop - slices[index].start for index in drawn])
        count = int(np.searchsorted(np.cumsum(lengths), rows)) + 1
        chosen = np.concatenate([np.arange(slices[index].start, slices[index].stop) for index in drawn[:count]])[:rows]
        arrays = {name: array[np.sort(chosen)] for name, array in self.arrays().items()}
        # A cut episode goes on where its log does not.
        cut = np.searchsorted(np.sort(chosen), chosen[-1])
        arrays["timeouts"][cut] |= ~arrays["terminals"][cut]
        return TransitionDataset.from_arrays(arrays, self.metadata, file="the subset of the data")

    def split_episodes(
        self, holdout_fraction: float, generator: np.random.Generator
    ) -> tuple[TransitionDataset, TransitionDataset]:
        """Split into training and hold-out data by whole episodes drawn at random, so that neither sees the other's.

        Args:
            holdout_fraction: share of the episodes held out, above 0 and below 1; at least one episode goes to either.
            generator: draws the episodes.

        Returns:
            Training data and hold-out data, their episodes in the original order.

        Raises:
            UserError: the fraction is not between 0 and 1, or there is only one episode.
        """
        if not 0.0 < holdout_fraction < 1.0:
            raise UserError(f"a hold-out fraction of {holdout_fraction} is not above 0 and below 1; take 0.1, say.")
        episodes = len(self.episode_slices())
        if episodes < 2:
            raise UserError(
                "the data has one episode only, so none can be held out; record more episodes, or mark where one "
                "ends in timeouts."
            )
        count = min(max(round(holdout_fraction * episodes), 1), episodes - 1)
        held_out = np.zeros(episodes, bool)
        held_out[generator.permutation(episodes)[:count]] = True
        return self.select_episodes(np.flatnonzero(~held_out)), self.select_episodes(np.flatnonzero(held_out))


def _numbered(word: str, array: np.ndarray) -> tuple[str, ...]:
    """Return names for the columns of an array that came without any."""
    return tuple(f"{word}_{column}" for column in range(array.shape[1]))


def _check_metadata(metadata: Metadata, arrays: Mapping[str, np.ndarray], file: str) -> None:
    """Refuse metadata that is incomplete or does not fit the arrays."""
    if not metadata.env:
        raise UserError(f"{file} does not say which environment or robot it is from; give the name as dataset.env.")
    if not 0.0 < metadata.control_dt < np.inf:
        raise UserError(f"{file} does not say its control period; give the seconds from row to row as control_dt.")
    for field, names in (("observations", metadata.observation_names), ("actions", metadata.action_names)):
        columns = arrays[field].shape[1]
        if len(names) != columns:
            raise UserError(
                f"{file}: the field '{field}' has {columns} columns where the metadata names {len(names)}; name each."
            )
