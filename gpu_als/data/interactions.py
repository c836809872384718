"""Ratings together with the ids of their users and items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import as_csr, to_host
from gpu_als.data.ids import IdMap, factorize, to_id_array
from gpu_als.errors import InputError

__all__ = ["Interactions", "check_duplicates", "encode", "keep_last"]


@dataclass(frozen=True, eq=False)
class Interactions:
    """Ratings as a matrix, with the external ids of its rows and columns.

    Parameters
    ----------
    user_items : csr_matrix, shape (users, items)
        float32 or float64. Anything :func:`~gpu_als.data.csr.as_csr` takes is converted.
    user_ids : ndarray of int64 or str, shape (users,), or None
        ``user_ids[row]`` is the id of the row. None: the row numbers are the ids.
    item_ids : ndarray of int64 or str, shape (items,), or None

    Attributes
    ----------
    user_map, item_map : IdMap
        The lookups from id to row and to column.

    Raises
    ------
    InputError
        If the matrix or the ids cannot be used, or their sizes differ.
    """

    user_items: sp.csr_matrix
    user_ids: np.ndarray | None = None
    item_ids: np.ndarray | None = None
    user_map: IdMap = field(init=False, repr=False)
    item_map: IdMap = field(init=False, repr=False)
    _columns: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        wide = getattr(self.user_items, "dtype", None) == np.float64
        dtype = np.float64 if wide else np.float32
        matrix = as_csr(self.user_items, name="user_items", dtype=dtype)
        object.__setattr__(self, "user_items", matrix)
        for axis, side in enumerate(("user", "item")):
            name = f"{side}_ids"
            ids = IdMap(getattr(self, name), matrix.shape[axis], name=name)
            if ids.size != matrix.shape[axis]:
                raise InputError(
                    f"{name}: found {ids.size} ids for {matrix.shape[axis]} {side}s; "
                    f"pass one id for each {side} of the matrix"
                )
            object.__setattr__(self, name, ids.ids)
            object.__setattr__(self, f"{side}_map", ids)

    @classmethod
    def from_triples(
        cls,
        users: Any,
        items: Any,
        ratings: Any = None,
        *,
        duplicates: Literal["sum", "last"] = "sum",
        dtype: Any = np.float32,
    ) -> Interactions:
        """Build the matrix from one user, item and rating per entry.

        Parameters
        ----------
        users, items : array-like of int or str, shape (n,)
            Any ids. Rows and columns come in ascending order of them.
        ratings : array-like of numbers, shape (n,), or None
            None: every rating is 1.
        duplicates : {"sum", "last"}
            What becomes of several ratings for one user and item: their sum, or the last one.
        dtype : numpy.float32 or numpy.float64

        Returns
        -------
        Interactions

        Raises
        ------
        InputError
            For missing ids, ratings that are not finite numbers, or different lengths.
        """
        check_duplicates(duplicates)
        user_ids, rows = factorize(to_id_array(users, name="users"))
        item_ids, columns = factorize(to_id_array(items, name="items"))
        values = _check_ratings(ratings, len(rows))
        _check_lengths(users=rows, items=columns, ratings=values)
        triples = sp.coo_matrix((values, (rows, columns)), shape=(len(user_ids), len(item_ids)))
        if duplicates == "last":
            triples = keep_last(triples)
        return cls(as_csr(triples, dtype=dtype), user_ids, item_ids)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        user: Any = "user",
        item: Any = "item",
        rating: Any = "rating",
        duplicates: Literal["sum", "last"] = "sum",
        dtype: Any = np.float32,
    ) -> Interactions:
        """Build the matrix from three columns of a table.

        Parameters
        ----------
        frame : DataFrame, structured or record array, or mapping of arrays
            Anything with ``.columns`` and ``frame[column]`` is a DataFrame here.
        user, item : column name
        rating : column name or None
            None: every rating is 1.
        duplicates, dtype
            As in :meth:`from_triples`.

        Returns
        -------
        Interactions

        Raises
        ------
        InputError
            If a column does not exist, and as in :meth:`from_triples`.
        """
        names = _column_names(frame)
        for argument, column in (("user", user), ("item", item), ("rating", rating)):
            if column not in names and not (argument == "rating" and column is None):
                hint = ", or None for ratings of 1" if argument == "rating" else ""
                raise InputError(
                    f"{argument}: found no column {column!r}; pass one of "
                    f"{', '.join(map(repr, names))}{hint}"
                )
        ratings = None if rating is None else frame[rating]
        return cls.from_triples(
            frame[user], frame[item], ratings, duplicates=duplicates, dtype=dtype
        )

    @classmethod
    def from_matrix(
        cls,
        matrix: Any,
        *,
        user_ids: Any = None,
        item_ids: Any = None,
        dtype: Any = np.float32,
    ) -> Interactions:
        """Wrap a matrix, with or without ids for its rows and columns.

        Parameters
        ----------
        matrix : sparse or dense matrix, shape (users, items)
            As :func:`~gpu_als.data.csr.as_csr` takes it.
        user_ids, item_ids : array-like of int or str, or None
            In the order of the rows and columns, each id once. None: the numbers are the ids.
        dtype : numpy.float32 or numpy.float64

        Returns
        -------
        Interactions

        Raises
        ------
        InputError
            If the matrix or the ids cannot be used, or their sizes differ.
        """
        return cls(as_csr(matrix, name="matrix", dtype=dtype), user_ids, item_ids)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""
        return self.user_items.shape

    @property
    def nnz(self) -> int:
        """Number of ratings kept, zeros included."""
        return int(self.user_items.nnz)

    def select(self, user_ids: Any, items: IdMap) -> sp.csr_matrix:
        """Return the ratings of some users, in the columns of another map of items.

        Parameters
        ----------
        user_ids : array-like of ids, shape (n,)
            A user who is not here has an empty row.
        items : IdMap
            Ratings of items that it lacks are left out.

        Returns
        -------
        csr_matrix, shape (n, items.size)
        """
        rows = self.user_map.rows(user_ids, name="user_ids", unknown="skip")
        there, columns = self._columns.get("there", (None, None))
        if there is not items:
            own = np.arange(self.shape[1]) if self.item_ids is None else self.item_ids
            columns = items.rows(own, name="item_ids", unknown="skip")
            self._columns["there"] = items, columns
        known = np.flatnonzero(rows >= 0)
        entries = self.user_items[rows[known]].tocoo()
        columns = columns[entries.col]
        kept = columns >= 0
        places = known[entries.row[kept]], columns[kept]
        return sp.csr_matrix((entries.data[kept], places), shape=(len(rows), items.size))

    @property
    def T(self) -> Interactions:
        """The same ratings, item by item."""
        return Interactions(self.user_items.T.tocsr(), self.item_ids, self.user_ids)

    def user_index(self, ids: Any) -> np.ndarray:
        """Return the rows of user ids.

        Parameters
        ----------
        ids : id or array-like of ids, shape (n,)

        Returns
        -------
        ndarray of int64, shape (n,)

        Raises
        ------
        InputError
            If an id is unknown; an :class:`~gpu_als.errors.IdRangeError` where row numbers are ids.
        """
        return self.user_map.rows(ids, name="users")

    def item_index(self, ids: Any) -> np.ndarray:
        """Return the columns of item ids, as :meth:`user_index` does for users."""
        return self.item_map.rows(ids, name="items")

    def encode(
        self,
        users: Any,
        items: Any,
        ratings: Any = None,
        *,
        unknown: Literal["raise", "skip"] = "raise",
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Express other ratings, held-out ones for example, in the rows and columns of this matrix.

        Parameters
        ----------
        users, items : array-like of ids, shape (n,)
        ratings : array-like of numbers, shape (n,), or None
            None: every rating is 1.
        unknown : {"raise", "skip"}
            Whether entries with an id that is not here are an error or left out.

        Returns
        -------
        rows, columns : ndarray of int64, shape (kept,)
        values : ndarray of the matrix's float type, shape (kept,)

        Raises
        ------
        InputError
            For unknown ids, ratings that are not finite numbers, or different lengths.
        """
        maps = self.user_map, self.item_map
        return encode(maps, users, items, ratings, unknown=unknown, dtype=self.user_items.dtype)


def encode(
    maps: tuple[IdMap, IdMap],
    users: Any,
    items: Any,
    ratings: Any,
    *,
    unknown: Literal["raise", "skip"],
    dtype: np.dtype,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Express ratings in rows and columns; see :meth:`Interactions.encode`."""
    rows, columns = (
        ids.rows(wanted, name=name, unknown=unknown)
        for ids, wanted, name in zip(maps, (users, items), ("users", "items"), strict=True)
    )
    values = _check_ratings(ratings, len(rows)).astype(dtype, copy=False)
    _check_lengths(users=rows, items=columns, ratings=values)
    known = (rows >= 0) & (columns >= 0)
    return rows[known], columns[known], values[known]


def check_duplicates(duplicates: str) -> None:
    """Refuse a ``duplicates`` argument that is neither "sum" nor "last"."""
    if duplicates not in ("sum", "last"):
        raise InputError(f"duplicates: found {duplicates!r}; pass 'sum' or 'last'")


def keep_last(triples: sp.coo_matrix) -> sp.coo_matrix:
    """Return ``triples`` with only the last entry for each row and column."""
    order = np.lexsort((triples.col, triples.row))  # stable, and free of products that overflow
    rows, columns = triples.row[order], triples.col[order]
    last = np.ones(len(order), np.bool_)
    last[:-1] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])
    entries = (triples.data[order[last]], (rows[last], columns[last]))
    return sp.coo_matrix(entries, shape=triples.shape)


def _column_names(frame: Any) -> list[Any]:
    if hasattr(frame, "columns"):
        return list(frame.columns)
    if isinstance(frame, Mapping):
        return list(frame)
    names = getattr(getattr(frame, "dtype", None), "names", None)
    if names is None:
        raise InputError(
            f"frame: found {type(frame).__name__}; pass a DataFrame, a structured array or a dict "
            "of arrays, or use Interactions.from_matrix for a matrix"
        )
    return list(names)


def _check_ratings(ratings: Any, n_entries: int) -> np.ndarray:
    """Return ratings as finite float64: wide enough to add duplicates up."""
    if ratings is None:
        return np.ones(n_entries)
    array = np.asarray(to_host(ratings))
    if array.ndim != 1:
        raise InputError(f"ratings: found {array.ndim} dimensions; pass a 1-D array of numbers")
    if array.dtype.kind == "O":
        array = _from_objects(array)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"ratings: found values of type {array.dtype}; convert them to real numbers first, for "
            "example with numpy.asarray(ratings, dtype=float)"
        )
    values = array.astype(np.float64, copy=False)
    bad = ~np.isfinite(values)
    if bad.any():
        raise InputError(
            f"ratings: found {np.count_nonzero(bad)} NaN or infinite value(s), the first at "
            f"position {int(np.argmax(bad))}; remove these entries or give them finite ratings"
        )
    return values


def _from_objects(array: np.ndarray) -> np.ndarray:
    """Convert what DataFrames with nullable columns hand over; leave texts to be refused."""
    if any(isinstance(value, str | bytes) for value in array.tolist()):
        return array
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise InputError(
            "ratings: found a number beyond every float; remove or rescale it"
        ) from None
    except (TypeError, ValueError):
        return array


def _check_lengths(**arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(
            f"users, items, ratings: found lengths {found}; pass one of each per entry"
        )
