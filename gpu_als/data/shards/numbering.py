"""From ids that arrive in blocks to row numbers.

Rows come in ascending order of the ids, as in :class:`~gpu_als.data.interactions.Interactions`, so
no number is known before the last block. Until then entries hold what there is: integers as they
are, and for a text the number of texts before it. The distinct ids have to fit in memory.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gpu_als.data.ids import to_id_array

__all__ = ["IdCollector", "NumberCollector", "Rows"]

_PENDING = 1 << 17
_INTEGER_BYTES, _PENDING_BYTES = 64, 24
_TEXT_BYTES = 280
"""What an id takes at most while it is collected and sorted; a text its characters besides."""
_LARGEST_TABLE = 4


@dataclass(frozen=True)
class Rows:
    """The row of every id of one side.

    Attributes
    ----------
    counts : ndarray of int64, shape (rows,)
        How many entries each row has.
    integers : ndarray of int64, shape (n,)
        The ids that arrived as integers, ascending. Without ``integer_rows``, numbers are rows.
    integer_rows : ndarray of int64, shape (n,)
    code_rows : ndarray of int64, shape (texts,)
        The row of each text by its code.
    """

    counts: np.ndarray
    integers: np.ndarray
    integer_rows: np.ndarray
    code_rows: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes that this and its lookup take at most."""
        held = sum(array.nbytes for array in vars(self).values())
        return 2 * held + _LARGEST_TABLE * self.integers.nbytes

    def lookup(self) -> Lookup:
        """Return the function from stored ids to rows."""
        return Lookup(self)


class Lookup:
    """Finds the rows of ids that were collected."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        integers = rows.integers
        self._table: np.ndarray | None = None
        span = int(integers[-1]) - int(integers[0]) + 1 if len(integers) else 0
        if 0 < span <= _LARGEST_TABLE * len(integers):  # far quicker than searching
            self._table = np.zeros(span, np.int64)
            self._table[integers - integers[0]] = rows.integer_rows

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Return rows, int64, shape (n,), of what a collector returned for some ids."""
        rows = self._rows
        if stored.dtype == np.int32:
            return rows.code_rows[stored]
        if len(rows.integers) == 0:
            return stored
        if self._table is not None:
            return self._table[stored - rows.integers[0]]
        return rows.integer_rows[np.searchsorted(rows.integers, stored)]


class NumberCollector:
    """Row numbers of a matrix, which are ids and rows at once."""

    BYTES_OF_A_ROW = 24
    """What a row takes: its count, once more while shards are planned, and in CSR its start."""

    def __init__(self, size: int) -> None:
        self._counts = np.zeros(size, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes that this takes."""
        return self.BYTES_OF_A_ROW * len(self._counts)

    def add(self, numbers: np.ndarray, *, name: str = "") -> np.ndarray:
        """Count row numbers, int64, which are below the size, and return them."""
        distinct, counts = np.unique(numbers, return_counts=True)
        self._counts[distinct] += counts
        return numbers

    add_known = add

    def finish(self) -> tuple[None, Rows]:
        """Return that there are no ids, and the rows."""
        nothing = np.zeros(0, np.int64)
        return None, Rows(self._counts, nothing, nothing, nothing)


class IdCollector:
    """The distinct ids of one side and their counts.

    Parameters
    ----------
    known : ndarray of int64 or str, or None
        Ids that have rows already, in the order of these. They keep them.
    """

    def __init__(self, known: np.ndarray | None = None) -> None:
        self._known = np.zeros(0, np.int64) if known is None else known
        self._texts = _Texts()
        self._integers = _Integers()
        if self._known.dtype.kind == "U":
            self._texts.add(self._known.tolist(), count=False)
        else:
            self._integers.add(self._known, count=False)

    @property
    def nbytes(self) -> int:
        """Estimated bytes that the ids take while they are collected and sorted."""
        return self._integers.nbytes + self._texts.nbytes

    def add(self, ids: np.ndarray, *, name: str) -> np.ndarray:
        """Collect some ids.

        Parameters
        ----------
        ids : array-like of int or str, shape (n,)
        name : str
            What messages call them.

        Returns
        -------
        ndarray of int64 (integers) or int32 (the codes of texts), shape (n,)

        Raises
        ------
        InputError
            For missing or unusable ids.
        """
        array = to_id_array(ids, name=name)
        if array.dtype == object:
            return self._texts.add(array.tolist())
        self._integers.add(array)
        return array

    def add_known(self, rows: np.ndarray) -> np.ndarray:
        """Collect ids by the row they have already; otherwise like :meth:`add`."""
        if self._known.dtype.kind == "U":
            self._texts.count(rows)
            return rows.astype(np.int32)
        ids = self._known[rows]
        self._integers.add(ids)
        return ids

    def finish(self) -> tuple[np.ndarray | list[str], Rows]:
        """Return the id of each row, and the rows."""
        integers, integer_counts = self._integers.result()
        texts, text_counts = self._texts.result()
        ids: np.ndarray | list[str]
        if texts:
            # As soon as one is a text, all are: then 7 is the text "7".
            spelled = list(map(str, integers.tolist()))
            ids = list(map(str, self._known.tolist()))
            ids += sorted({*texts, *spelled}.difference(ids))
            row_of = {text: row for row, text in enumerate(ids)}
            code_rows, integer_rows = _look_up(row_of, texts), _look_up(row_of, spelled)
        else:
            new = integers[~np.isin(integers, self._known)]
            ids = np.concatenate([self._known, new])
            order = np.argsort(ids)
            code_rows, integer_rows = np.zeros(0, np.int64), order.astype(np.int64)
        counts = np.zeros(len(ids), np.int64)
        # An id that came as an integer and as a text is in both, so this adds up.
        counts[integer_rows] += integer_counts
        counts[code_rows] += text_counts
        return ids, Rows(counts, integers, integer_rows, code_rows)


class _Integers:
    """Distinct integers, ascending, with counts. New ones are merged in when they are many."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._n_pending = 0

    @property
    def nbytes(self) -> int:
        return _INTEGER_BYTES * len(self._ids) + _PENDING_BYTES * self._n_pending

    def add(self, ids: np.ndarray, *, count: bool = True) -> None:
        distinct, counts = np.unique(ids, return_counts=True)
        self._pending.append((distinct, counts * count))
        self._n_pending += len(distinct)
        if self._n_pending > max(_PENDING, len(self._ids)):
            self._merge()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        self._merge()
        return self._ids, self._counts

    def _merge(self) -> None:
        pending, self._pending, self._n_pending = self._pending, [], 0
        if not pending:
            return
        ids, position = np.unique(
            np.concatenate([part[0] for part in pending]), return_inverse=True
        )
        counts = np.zeros(len(ids), np.int64)
        np.add.at(counts, position, np.concatenate([part[1] for part in pending]))
        places = np.searchsorted(self._ids, ids)
        known = np.zeros(len(ids), np.bool_)
        inside = places < len(self._ids)
        known[inside] = self._ids[places[inside]] == ids[inside]
        self._counts[places[known]] += counts[known]
        self._ids = np.insert(self._ids, places[~known], ids[~known])
        self._counts = np.insert(self._counts, places[~known], counts[~known])


class _Texts:
    """Distinct texts, by the number of texts before each, with counts."""

    def __init__(self) -> None:
        self._code_of: defaultdict[str, int] = defaultdict()
        self._code_of.default_factory = self._code_of.__len__
        self._counts = np.zeros(0, np.int64)  # with room to grow
        self._n_characters = 0

    def __len__(self) -> int:
        return len(self._code_of)

    @property
    def nbytes(self) -> int:
        return _TEXT_BYTES * len(self) + self._n_characters

    def add(self, texts: list[str], *, count: bool = True) -> np.ndarray:
        code_of, n_before = self._code_of, len(self._code_of)
        codes = np.fromiter(map(code_of.__getitem__, texts), np.int32, len(texts))
        self._n_characters += sum(map(len, islice(reversed(code_of), len(code_of) - n_before)))
        if count:
            self.count(codes)
        return codes

    def count(self, codes: np.ndarray) -> None:
        missing = len(self) - len(self._counts)
        if missing > 0:
            room = np.zeros(missing + len(self._counts) // 4, np.int64)
            self._counts = np.concatenate([self._counts, room])
        distinct, counts = np.unique(codes, return_counts=True)
        self._counts[distinct] += counts

    def result(self) -> tuple[list[str], np.ndarray]:
        self.count(np.zeros(0, np.int32))
        return list(self._code_of), self._counts[: len(self)]


def _look_up(row_of: dict[str, int], texts: list[str]) -> np.ndarray:
    return np.fromiter(map(row_of.__getitem__, texts), np.int64, len(texts))
