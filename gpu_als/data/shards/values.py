"""How values are stored: float32, float16, or codes of one byte with a table."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpu_als.errors import InputError

__all__ = ["VALUE_DTYPES", "Encoder", "check_value_type", "decode"]

VALUE_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "codes": np.dtype("u1"),
}
_MOST_CODES = 256


def check_value_type(value_type: str, *, lossy: bool) -> None:
    """Refuse a type there is not, and rounding where there is none."""
    if value_type not in VALUE_DTYPES:
        raise InputError(
            f"value_type: found {value_type!r}; pass one of {', '.join(map(repr, VALUE_DTYPES))}"
        )
    if lossy and value_type != "float16":
        raise InputError(f"lossy: {value_type} never rounds further than to float32; leave it out")


class Encoder:
    """Turns values into what is stored.

    Parameters
    ----------
    value_type : {"float32", "float16", "codes"}
    lossy : bool
        Whether float16 may round. Otherwise a float32 it cannot hold is refused.
    codes : iterable of float
        Values that have a code already, in the order of the codes.

    Attributes
    ----------
    codes : list of float
        The value of each code so far. It grows with the values met.
    """

    def __init__(self, value_type: str, *, lossy: bool = False, codes: Iterable[float] = ()):
        self._value_type = value_type
        self._lossy = lossy
        self.codes = list(codes)
        self._code_of = {value: code for code, value in enumerate(self.codes)}

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return finite values, shape (n,), as they are stored.

        Raises
        ------
        InputError
            If a value is too large for float32 or, unless rounding was asked for, not exact in
            the type.
        """
        with np.errstate(over="ignore"):
            single = values.astype(VALUE_DTYPES["float32"], copy=False)
        if not np.isfinite(single).all():
            largest = np.abs(values).max()
            raise InputError(f"ratings: found {largest:g}, too large for float32; rescale them")
        if self._value_type == "float32":
            return single
        return self._halves(single) if self._value_type == "float16" else self._codes(single)

    def _halves(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            halves = values.astype(VALUE_DTYPES["float16"])
        changed = ~np.isfinite(halves) if self._lossy else halves != values
        if changed.any():
            found = values[np.argmax(changed)]
            raise InputError(
                f"value_type: float16 cannot hold the rating {found:g}; pass 'float32'"
                + ("" if self._lossy else ", or lossy=True to round")
            )
        return halves

    def _codes(self, values: np.ndarray) -> np.ndarray:
        ascending = np.array(sorted(self._code_of), VALUE_DTYPES["float32"])
        places = np.searchsorted(ascending, values)
        places[places == len(ascending)] = 0
        new = ascending[places] != values if len(ascending) else np.ones(len(values), np.bool_)
        if new.any():
            self._learn(values[new])
            return self._codes(values)
        codes = [self._code_of[value] for value in ascending.tolist()]
        return np.array(codes, VALUE_DTYPES["codes"])[places]

    def _learn(self, values: np.ndarray) -> None:
        """Give codes to new values, in the order in which they come, however they are divided."""
        distinct, first = np.unique(values, return_index=True)
        if len(self.codes) + len(distinct) > _MOST_CODES:
            raise InputError(
                f"value_type: found more than {_MOST_CODES} different ratings, too many for codes; "
                "pass 'float32'"
            )
        for value in distinct[np.argsort(first)].tolist():
            self._code_of[value] = len(self.codes)
            self.codes.append(value)


def decode(stored: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return stored values as float32; those stored so already are not copied.

    Parameters
    ----------
    stored : ndarray of float32, float16 or uint8, shape (n,)
    codes : ndarray of float32, shape (codes,)
        The values of codes. They are few, so one that is too large is an IndexError.
    """
    if stored.dtype == VALUE_DTYPES["codes"]:
        return codes[stored]
    return stored.astype(np.float32, copy=False)
