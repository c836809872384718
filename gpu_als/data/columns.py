"""Which columns or arrays of a file hold the users, the items and the ratings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpu_als.errors import InputError, ReadError

__all__ = [
    "COLUMNS",
    "Column",
    "Triples",
    "array_names",
    "find_column",
    "named_column",
    "refuse_columns",
]

Column = str | int | None
COLUMNS = ("user", "item", "rating")

# Best first; compared without case, blanks, "_" and "-".
_COMMON_NAMES = {
    "user": "userid user users uid username customerid customer reviewerid visitorid row",
    "item": "itemid item items iid movieid movie productid product parentasin asin artistid artist "
    "bookid book isbn songid song trackid track businessid col",
    "rating": "rating ratings score scores stars count counts value values plays playcount weight "
    "overall bookrating data",
}


class Triples(NamedTuple):
    """What a ratings file holds, one entry per rating."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray | None


def find_column(names: Sequence[str], which: str) -> int | None:
    """Return the position of the column that by its name holds the users, items or ratings.

    Parameters
    ----------
    names : sequence of str
    which : {"user", "item", "rating"}

    Returns
    -------
    int or None
        None where no name is a common one.
    """
    plain = [name.strip("\"' ").lower() for name in names]
    plain = [name.replace("_", "").replace("-", "").replace(" ", "") for name in plain]
    for common in _COMMON_NAMES[which].split():
        if common in plain:
            return plain.index(common)
    return None


def named_column(path: Path, names: Sequence[str], which: str, column: str) -> int:
    """Return the position of the column called ``column``.

    Raises
    ------
    InputError
        If there is none; ``which`` is the argument at fault.
    """
    if column not in names:
        raise InputError(
            f"{which}: {path} has no column {column!r}; pass one of {', '.join(map(repr, names))}"
        )
    return names.index(column)


def array_names(
    path: Path, names: Sequence[str], columns: Sequence[Column]
) -> tuple[str, str, str | None]:
    """Return which arrays of an archive hold users, items and, where there are any, ratings.

    Parameters
    ----------
    path : Path
    names : sequence of str
        Those of the archive.
    columns : sequence of str, int or None
        What the user said of users, items and ratings.

    Raises
    ------
    ReadError
        If no name is a common one for users or items.
    InputError
        If a name does not exist, or a position was passed.
    """
    found: list[str | None] = []
    for which, column in zip(COLUMNS, columns, strict=True):
        if isinstance(column, int):
            raise InputError(
                f"{which}: found position {column}; pass the name of an array in {path}"
            )
        position = (
            find_column(names, which)
            if column is None
            else named_column(path, names, which, column)
        )
        found.append(None if position is None else names[position])
    user, item, rating = found
    if user is None or item is None:
        which = "user" if user is None else "item"
        raise ReadError(
            f"{path}: found no {which} array among {', '.join(map(repr, names))}; pass "
            f"{which}=<array name>"
        )
    return user, item, rating


def refuse_columns(path: Path, columns: Sequence[Column]) -> None:
    """Refuse columns of a file that holds a matrix.

    Raises
    ------
    InputError
        If one is not None.
    """
    if any(column is not None for column in columns):
        raise InputError(
            f"user, item, rating: found {tuple(columns)}, but {path} holds a matrix; leave them "
            "None"
        )
