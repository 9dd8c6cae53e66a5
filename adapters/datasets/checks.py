"""What makes a data set well formed: every check that its arrays go through, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adapters.errors import UserError

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
MATRICES = ("observations", "actions", "next_observations", "final_observations")
FLAGS = ("terminals", "timeouts")


def checked_arrays(arrays: Mapping[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """Return the arrays of a data set by the names in `FIELDS`: numbers as float32, flags as bool, all copied.

    Args:
        arrays: one array for each of `FIELDS`; `final_observations (episodes, obs_dim)` may stand in place of
            `next_observations`, since within an episode the next observation is the following row.
        file: the name that an error message gives the data.

    Raises:
        UserError: a field is missing, of the wrong kind or shape, empty, cut short or not finite, or the rows are out
            of order. The sentence names the file, the field and the first bad row.
    """
    if "final_observations" in arrays and "next_observations" not in arrays:
        checked = checked_fields(arrays, [name for name in FIELDS if name != "next_observations"], file)
        ends = episode_ends(checked["terminals"], checked["timeouts"])
        final = _checked_field(arrays["final_observations"], "final_observations", file)
        if len(final) != ends.sum():
            raise UserError(
                f"{file}: the field 'final_observations' has {len(final)} rows where {ends.sum()} episodes end; "
                "give one for each row that is marked in 'terminals' or 'timeouts', and for the last."
            )
        _check_columns("final_observations", final, checked["observations"], file)
        next_observations = _following(checked["observations"], ends, final)
    else:
        checked = checked_fields(arrays, FIELDS, file)
        ends = episode_ends(checked["terminals"], checked["timeouts"])
        given = checked["next_observations"]
        _check_columns("next_observations", given, checked["observations"], file)
        # Equal as numbers, but the sign of a zero may differ: rebuilt, they have the same bits in every file form.
        next_observations = _following(checked["observations"], ends, given[ends])
        _check_order(given, next_observations, file)
    return {name: next_observations if name == "next_observations" else checked[name] for name in FIELDS}


def checked_fields(arrays: Mapping[str, np.ndarray], names: Sequence[str], file: str) -> dict[str, np.ndarray]:
    """Return the named fields as float32 and bool copies of one length, each checked by itself.

    Raises:
        UserError: a field is missing, of the wrong kind or shape, empty, cut short or not finite.
    """
    for name in names:
        if name not in arrays:
            raise UserError(f"{file} has no field '{name}'; a data set needs {', '.join(FIELDS)}.")
    checked = {name: _checked_field(arrays[name], name, file) for name in names}
    rows = max(map(len, checked.values()))
    if rows == 0:
        raise UserError(f"{file}: the field '{names[0]}' is empty; a data set needs at least one row.")
    for name, array in checked.items():
        if len(array) < rows:
            raise UserError(
                f"{file}: the field '{name}' stops at row {len(array)} of {rows}, so the data was cut short; "
                "copy or record it again."
            )
    return checked


def episode_ends(terminals: np.ndarray, timeouts: np.ndarray) -> np.ndarray:
    """Return `(N,)` bool, the last row of every episode; the last row of the data is always one."""
    ends = terminals | timeouts
    ends[-1] = True
    return ends


def _following(observations: np.ndarray, ends: np.ndarray, final_observations: np.ndarray) -> np.ndarray:
    """Return the row after every row `(N, obs_dim)`, and at an episode's end its final observation."""
    following = np.empty_like(observations)
    following[:-1] = observations[1:]
    following[ends] = final_observations
    return following


def _checked_field(array: np.ndarray, name: str, file: str) -> np.ndarray:
    """Check one field by itself and return it as float32 or bool."""
    dimensions, shape = (2, "(rows, columns)") if name in MATRICES else (1, "(rows,)")
    if np.ndim(array) != dimensions or 0 in np.shape(array)[1:]:
        raise UserError(f"{file}: the field '{name}' has shape {np.shape(array)}; it must be {shape}.")
    return _as_flags(array, name, file) if name in FLAGS else _as_numbers(array, name, file)


def _as_numbers(array: np.ndarray, name: str, file: str) -> np.ndarray:
    """Return a float32 copy, or refuse what is no real number or not finite."""
    if array.dtype.kind not in "fiu":
        raise UserError(f"{file}: the field '{name}' holds {array.dtype} where float32 numbers are needed; convert it.")
    with np.errstate(over="ignore"):
        numbers = np.array(array, np.float32, order="C")
    finite = np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim)))
    if not finite.all():
        raise UserError(
            f"{file}: the field '{name}' is not finite in float32 at row {np.argmin(finite)}; repair that row or cut "
            "its episode out."
        )
    return numbers


def _as_flags(array: np.ndarray, name: str, file: str) -> np.ndarray:
    """Return a bool copy, or refuse what is neither true and false nor 1 and 0."""
    if array.dtype.kind not in "bfiu":
        raise UserError(f"{file}: the field '{name}' holds {array.dtype} where true and false are needed; convert it.")
    valid = (array == 0) | (array == 1)
    if not valid.all():
        row = np.argmin(valid)
        raise UserError(f"{file}: the field '{name}' is {array[row]} at row {row}; write 0 or 1.")
    return array.astype(bool)


def _check_columns(name: str, array: np.ndarray, observations: np.ndarray, file: str) -> None:
    """Refuse next or final observations of another width than the observations."""
    if array.shape[1] != observations.shape[1]:
        raise UserError(
            f"{file}: the field '{name}' has shape {array.shape} where 'observations' has {observations.shape[1]} "
            "columns; record the same terms in both."
        )


def _check_order(next_observations: np.ndarray, following: np.ndarray, file: str) -> None:
    """Refuse rows whose next observation is not the following row although the episode goes on."""
    in_order = (next_observations == following).all(axis=1)
    if not in_order.all():
        row = np.argmin(in_order)
        raise UserError(
            f"{file}: the field 'next_observations' at row {row} is not the observation of row {row + 1}, so the rows "
            f"are unsorted or some are missing; sort them by time, or mark row {row} in 'timeouts' if the record "
            "breaks off there."
        )
