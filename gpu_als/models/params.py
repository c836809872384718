"""Constructor parameters as scikit-learn users know them, without scikit-learn; argument checks."""

from __future__ import annotations

import inspect
import numbers
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import as_csr
from gpu_als.errors import InputError

__all__ = [
    "HasParameters",
    "check_dtype",
    "check_flag",
    "check_integer",
    "check_nonnegative",
    "check_pair",
    "requested_rows",
]


_ANY_NUMBER, _ANY_NAMES = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


class HasParameters:
    """Mixin: every constructor parameter is an attribute of the same name."""

    @classmethod
    def _parameters(cls) -> dict[str, inspect.Parameter]:
        """Return the constructor's parameters; ``**options`` stands for those of the next class."""
        found: dict[str, inspect.Parameter] = {}
        for one in cls.__mro__:
            if "__init__" not in vars(one):
                continue
            _, *own = inspect.signature(vars(one)["__init__"]).parameters.values()
            named = {
                parameter.name: parameter
                for parameter in own
                if parameter.kind not in (_ANY_NAMES, _ANY_NUMBER)
            }
            found |= {name: named[name] for name in named if name not in found}
            if _ANY_NAMES not in (parameter.kind for parameter in own):
                break
        return found

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor parameters by name.

        Parameters
        ----------
        deep : bool
            Accepted for scikit-learn; there are no nested estimators.
        """
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Set constructor parameters by name and return the estimator.

        Raises
        ------
        InputError
            For a name that is not a parameter, or a value the constructor would refuse.
        """
        known = self._parameters()
        for name in params:
            if name not in known:
                raise InputError(
                    f"{name!r} is not a parameter; the parameters are {', '.join(known)}"
                )
        fresh = type(self)(**{**self.get_params(), **params})  # the constructor checks values
        for name in params:
            setattr(self, name, getattr(fresh, name))
        return self

    def __repr__(self) -> str:
        """Show the parameters that differ from their defaults."""
        signature = self._parameters()
        shown = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not signature[name].default and value != signature[name].default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


_LARGEST_INTEGER = 2**31 - 1


def check_integer(value: Any, *, name: str, at_least: int) -> int:
    """Return ``value`` as an int, or say what it must be."""
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not good or not at_least <= value <= _LARGEST_INTEGER:
        raise InputError(
            f"{name} must be an integer of at least {at_least} and below 2^31, not {value!r}"
        )
    return int(value)


def check_flag(value: Any, *, name: str) -> bool:
    """Return ``value`` as a bool, or say that it must be one."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_nonnegative(value: Any, *, name: str, above_zero: bool = False) -> float:
    """Return ``value`` as a finite float that is not negative, or say what it must be."""
    limit = "above 0" if above_zero else "of at least 0"
    try:
        good = isinstance(value, numbers.Real) and not isinstance(value, bool)
        number = float(value) if good else np.nan
    except OverflowError:  # an integer beyond every float
        number = np.inf
    if not 0 <= number < np.inf or (above_zero and number == 0):
        raise InputError(f"{name} must be a finite number {limit}, not {value!r}")
    return number


def check_pair(value: Any, *, name: str) -> tuple[float, float]:
    """Return one number, or one per side, as a pair."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise InputError(f"{name} must be one number or two, not {value!r}")
    users, items = (check_nonnegative(one, name=name) for one in pair)
    return users, items


def check_dtype(dtype: Any) -> np.dtype:
    """Return the factors' dtype: float32 or float64."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)  # not None, which equals float64
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"dtype must be numpy.float32 or numpy.float64, not {dtype!r}")
    return found


def requested_rows(
    user_items: Any,
    n_users: int,
    n_items: int,
    why: str,
    *,
    name: str = "user_items",
    dtype: Any = np.float32,
) -> sp.csr_matrix:
    """Return ``user_items`` as CSR after checking that it has one row per requested user.

    Parameters
    ----------
    why : str
        What the matrix is needed for; completes "user_items is needed to ...".
    name : str
        What the caller calls the matrix, in messages.
    dtype : dtype
        Of its values.
    """
    if user_items is None:
        raise InputError(f"{name} is needed to {why}; pass one row for every requested user")
    if n_users == 0:
        return sp.csr_matrix((0, n_items), dtype=dtype)
    rows = as_csr(user_items, name=name, dtype=dtype)
    if rows.shape[0] != n_users:
        raise InputError(
            f"{name} must contain 1 row for every requested user: it has {rows.shape[0]} rows "
            f"for {n_users} users; pass {name}[userid]"
        )
    if rows.shape[1] > n_items:
        raise InputError(f"{name} has {rows.shape[1]} columns, but the model {n_items} items")
    if rows.shape[1] < n_items:
        rows = sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=(n_users, n_items))
    return rows
