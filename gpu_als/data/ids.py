"""External ids, integers or strings, and the rows they stand for.

An id is known by its text: the integer 7 and the string "7" are the same id, so that a held-out
file or a command line finds the ids of a model whichever way each of them was read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from gpu_als.data.csr import check_index_array, to_host
from gpu_als.errors import InputError, check_choice

__all__ = ["IdMap", "factorize", "to_id_array"]

_INT64 = np.iinfo(np.int64)
_REMEDY = "pass integers or strings, for example with .astype(str)"
_MISSING_TYPES = frozenset({"NoneType", "NAType", "NaTType"})
_SHOWN = 5


class IdMap:
    """Find rows by external id.

    Parameters
    ----------
    ids : array-like of int or str, shape (rows,), or None
        The id of each row, each of them once, in any order. None: the row numbers are the ids.
    size : int
        Number of rows; needed only where ``ids`` is None.
    name : str
        What the caller calls ``ids``; used in messages.

    Attributes
    ----------
    ids : ndarray of int64 or str, shape (rows,), or None
    size : int

    Raises
    ------
    InputError
        If an id is missing, occurs twice, or is neither an integer nor a string.
    """

    def __init__(self, ids: Any, size: int = 0, *, name: str = "ids") -> None:
        self.ids: np.ndarray | None = None
        self.size = size
        self._row_of_text: dict[str, int] = {}
        self._order: np.ndarray | None = None  # rows by ascending id, where they are not so already
        if ids is not None:
            array = to_id_array(ids, name=name)
            self.size = len(array)
            self._build(array, name)

    def rows(
        self, wanted: Any, *, name: str, unknown: Literal["raise", "skip"] = "raise"
    ) -> np.ndarray:
        """Return the row of every wanted id.

        Parameters
        ----------
        wanted : id or array-like of ids, shape (n,)
            Without ids, row numbers.
        name : str
            What the caller calls ``wanted``; used in messages.
        unknown : {"raise", "skip"}
            Whether an id that does not occur is an error or gets row -1.

        Returns
        -------
        ndarray of int64, shape (n,)

        Raises
        ------
        InputError
            For unknown, missing or unusable ids; an :class:`~gpu_als.errors.IdRangeError` for row
            numbers out of range.
        """
        check_choice(unknown, ("raise", "skip"), name="unknown")
        array = to_id_array(wanted, name=name)
        if self.ids is None:
            rows = self._rows_of_numbers(array)
        elif self.ids.dtype.kind == "U":
            rows = self._rows_of_texts(array)
        else:
            rows = self._rows_of_integers(array)
        if unknown == "raise" and (rows < 0).any():
            self._refuse(array, array[rows < 0], name)
        return rows

    def _build(self, array: np.ndarray, name: str) -> None:
        if array.dtype == object:
            self._row_of_text = {text: row for row, text in enumerate(array.tolist())}
            self.ids = array.astype(np.str_)
            n_unique = len(self._row_of_text)
        else:
            self.ids = array
            if not (array[1:] > array[:-1]).all():
                self._order = np.argsort(array, kind="stable")
                array = array[self._order]
            n_unique = len(array) - int(np.count_nonzero(array[1:] == array[:-1]))
        if n_unique < self.size:
            raise InputError(
                f"{name}: {self.size - n_unique} id(s) occur more than once; give each row its own"
            )

    def _rows_of_numbers(self, wanted: np.ndarray) -> np.ndarray:
        numbers, valid = _as_integers(wanted)
        return np.where(valid & (numbers >= 0) & (numbers < self.size), numbers, -1)

    def _rows_of_texts(self, wanted: np.ndarray) -> np.ndarray:
        row_of_text = self._row_of_text
        texts: Iterable[str] = map(str, wanted.tolist())
        return np.fromiter((row_of_text.get(text, -1) for text in texts), np.int64, len(wanted))

    def _rows_of_integers(self, wanted: np.ndarray) -> np.ndarray:
        assert self.ids is not None
        if self.size == 0:
            return np.full(len(wanted), -1, np.int64)
        numbers, valid = _as_integers(wanted)
        ascending = self.ids if self._order is None else self.ids[self._order]
        position = np.minimum(np.searchsorted(ascending, numbers), self.size - 1)
        found = valid & (ascending[position] == numbers)
        return np.where(found, position if self._order is None else self._order[position], -1)

    def _refuse(self, wanted: np.ndarray, missing: np.ndarray, name: str) -> None:
        if self.ids is None and wanted.dtype != object:
            check_index_array(wanted, self.size, name=name)
        unknown = list(dict.fromkeys(missing.tolist()))
        shown = ", ".join(map(repr, unknown[:_SHOWN]))
        more = "" if len(unknown) <= _SHOWN else f" and {len(unknown) - _SHOWN} more"
        raise InputError(
            f"{name}: found {len(unknown)} unknown id(s): {shown}{more}; pass ids that occur in "
            "the training data"
        )


def factorize(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give ids codes in ascending order.

    Parameters
    ----------
    ids : ndarray of int64 or of str objects, shape (n,)
        As :func:`to_id_array` returns them.

    Returns
    -------
    unique : ndarray of int64 or str, ascending
    codes : ndarray of int64, shape (n,)
        ``unique[codes]`` equals ``ids``.
    """
    if ids.dtype == object:
        texts = ids.tolist()
        ascending = sorted(set(texts))
        code_of_text = {text: code for code, text in enumerate(ascending)}
        codes = np.fromiter(map(code_of_text.__getitem__, texts), np.int64, len(texts))
        return np.array(ascending, dtype=np.str_), codes
    if len(ids) and int(ids.max()) - int(ids.min()) < 4 * len(ids):
        return _factorize_by_table(ids)
    return np.unique(ids, return_inverse=True)


def _factorize_by_table(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Do it without sorting, which takes seconds for 25 million, where integers lie close."""
    offsets = ids - ids.min()
    present = np.zeros(int(offsets.max()) + 1, np.bool_)
    present[offsets] = True
    codes = np.cumsum(present, dtype=np.int64) - 1
    return np.flatnonzero(present) + ids.min(), codes[offsets]


def to_id_array(ids: Any, *, name: str) -> np.ndarray:
    """Return ids as a 1-D array of int64 or of ``str`` objects.

    Parameters
    ----------
    ids : id or array-like of ids, shape (n,)
        Integers, whole floats (what a join makes of integers), or strings.
    name : str
        What the caller calls this argument; used in messages.

    Returns
    -------
    ndarray of int64 or object, shape (n,)
        Strings stay objects because many of them are the same object: that is smaller than a
        fixed-width array and quicker to number.

    Raises
    ------
    InputError
        For missing ids, other types, more than one dimension, or integers beyond int64.
    """
    array = np.atleast_1d(_plain_array(ids, name))
    if array.ndim != 1:
        raise InputError(f"{name}: found {array.ndim} dimensions; pass a 1-D array of ids")
    kind = array.dtype.kind
    if kind == "U":
        return array.astype(object)
    if kind in "OT":  # NumPy's texts of any length can be missing, and end in NULs
        return _from_objects(array.astype(object, copy=False), name)
    if kind == "f":
        return _from_floats(array, name)
    if kind not in "iu":
        raise InputError(f"{name}: found ids of type {array.dtype}; {_REMEDY}")
    if kind == "u" and array.size and array.max() > _INT64.max:
        raise InputError(f"{name}: found {array.max()}, beyond int64; pass such ids as strings")
    return array.astype(np.int64, copy=False)


def _plain_array(ids: Any, name: str) -> np.ndarray:
    ids = [ids] if isinstance(ids, str) else to_host(ids)
    types = set(map(type, ids)) if isinstance(ids, list | tuple) else set()
    if len(types) > 1 or any(issubclass(kind, str) for kind in types):
        # NumPy would turn [7, None] or [7, "a"] into one type by itself and hide the mixture, and
        # shorten texts that end in NULs.
        array = np.empty(len(ids), object)
        for position, value in enumerate(ids):
            array[position] = value
        return array
    try:
        return np.asarray(ids)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"{name}: no array of ids ({error}); pass a 1-D array of ids") from error


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    values = array.tolist()
    types = set(map(type, values))
    if all(issubclass(kind, str) for kind in types):
        _refuse_shortened(values, name)
        return array
    if all(issubclass(kind, int | np.integer) and kind is not bool for kind in types):
        try:
            return array.astype(np.int64)
        except OverflowError:
            raise InputError(
                f"{name}: found {max(values, key=abs)}, beyond int64; pass such ids as strings"
            ) from None
    _refuse_missing(np.fromiter(map(_is_missing, values), np.bool_, len(values)), name)
    found = ", ".join(sorted(kind.__name__ for kind in types))
    raise InputError(f"{name}: found ids of type {found}; {_REMEDY}")


def _refuse_shortened(texts: list[str], name: str) -> None:
    """NumPy's arrays of texts, in which models keep ids, lose NULs at the end."""
    found = next((text for text in texts if text.endswith("\0")), None)
    if found is not None:
        raise InputError(f"{name}: found {found!r}, which ends in a NUL character; leave that out")


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in _MISSING_TYPES or (
        isinstance(value, float | np.floating) and bool(np.isnan(value))
    )


def _from_floats(array: np.ndarray, name: str) -> np.ndarray:
    _refuse_missing(np.isnan(array), name)
    whole = (array == np.floor(array)) & (np.abs(array) <= 2**53)
    if not whole.all():
        raise InputError(f"{name}: found {array[~whole][0]}, not a whole number; {_REMEDY}")
    return array.astype(np.int64)


def _refuse_missing(missing: np.ndarray, name: str) -> None:
    if missing.any():
        raise InputError(
            f"{name}: found {np.count_nonzero(missing)} missing id(s) (None or NaN), the first at "
            f"position {int(np.argmax(missing))}; drop these entries"
        )


def _as_integers(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids as integers, with a mask of those whose text is that of an integer."""
    if wanted.dtype != object:
        return wanted, np.ones(len(wanted), np.bool_)
    numbers = [_integer_of(text) for text in wanted.tolist()]
    valid = np.array([number is not None for number in numbers], np.bool_)
    return np.array([number or 0 for number in numbers], np.int64), valid


def _integer_of(text: str) -> int | None:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    number = int(text)
    canonical = str(number) == text and _INT64.min <= number <= _INT64.max
    return number if canonical else None
