"""What a fit has found: one frozen value, which everything that serves reads.

A model replaces its value as a whole and nothing changes one, so a call that reads it once sees
one model from beginning to end, whatever other threads do to the model meanwhile. What follows
from one side's factors (norms, Grams, a copy on the device) is worked out when first asked for,
shared by all values that have the side, and let go with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeVar

import numpy as np
import scipy.sparse as sp

from gpu_als.core.backend import Backend
from gpu_als.core.linalg import row_norms
from gpu_als.core.problem import Array
from gpu_als.data.csr import check_index_array
from gpu_als.data.ids import IdMap, factorize, to_id_array
from gpu_als.errors import InputError, NotFittedError

__all__ = ["Fitted", "Side", "norms"]

T = TypeVar("T")

_DTYPES = frozenset({np.dtype(np.float32), np.dtype(np.float64)})
_MOST_ROWS = 2**31 - 1
"""Row numbers are int32."""
_SMALLEST_NORM = 1e-10
"""What stands for a norm of zero, as in ``implicit``, so that one can divide by it."""


@dataclass(frozen=True, eq=False)
class Side:
    """The factors of the users, or of the items.

    Attributes
    ----------
    matrix : array or GPU matrix, shape (n, k), or None
        Shape (n, k + 1) with ``bias``: the last column holds the biases.
    bias : bool
    ids : array, shape (n,), or None
        The id of each row, where the training data had ids.
    """

    matrix: Any = None
    bias: bool = False
    ids: np.ndarray | None = None
    _derived: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return 0 if self.matrix is None else len(self.matrix)

    def derive(self, name: str, compute: Callable[[], T], given: object = None) -> T:
        """Return ``compute()``, from the last time if ``given``, what else it needs, is the same.

        Threads that ask at the same time may all compute it.
        """
        known = self._derived.get(name)
        if known is None or known[0] != given:
            known = self._derived[name] = given, compute()
        found: T = known[1]
        return found

    @property
    def factors(self) -> Any:
        """Array or GPU matrix, shape (n, k), without the biases; or None."""
        if self.matrix is None or not self.bias:
            return self.matrix
        return self.derive("factors", lambda: self.matrix[:, :-1])

    @property
    def biases(self) -> np.ndarray | None:
        """Array of shape (n,), zero in a model without biases; or None."""
        if self.matrix is None:
            return None
        if self.bias:
            return self.derive("biases", lambda: np.asarray(self.matrix)[:, -1])
        return self.derive("biases", lambda: np.zeros(len(self), self.matrix.dtype))

    def on(self, backend: Backend) -> Array:
        """Return the matrix as an array of the backend, uploaded once."""
        return self.derive(f"on {backend.name}", lambda: backend.from_host(self.matrix))

    def factors_on(self, backend: Backend) -> Array:
        """Return the factors without the biases as an array of the backend, shape (n, k)."""
        matrix = self.on(backend)
        return matrix[:, :-1] if self.bias else matrix

    def norms(self, backend: Backend) -> np.ndarray:
        """Return the norm of each row of factors, 1e-10 where it is zero; shape (n,)."""
        return self.derive(
            "norms", lambda: backend.to_host(norms(backend.xp, self.factors_on(backend)))
        )

    def unit(self, backend: Backend) -> Array:
        """Return the factors divided by their norms as an array of the backend, shape (n, k)."""

        def divide() -> Array:
            factors = self.factors_on(backend)
            return factors / norms(backend.xp, factors)[:, None]

        return self.derive(f"unit rows on {backend.name}", divide)

    def gram(self, backend: Backend) -> np.ndarray:
        """Return ``factors^T factors``, float64, shape (k, k)."""
        return self.derive("Gram", lambda: backend.to_host(backend.gram(self.factors_on(backend))))

    def rounded_gram(self, backend: Backend) -> np.ndarray:
        """Return the Gram in the dtype of the factors."""
        gram = self.gram(backend)
        return self.derive("rounded Gram", lambda: gram.astype(self.matrix.dtype))

    @property
    def id_map(self) -> IdMap:
        """The lookup from ids to rows."""
        return self.derive("map of ids", lambda: IdMap(self.ids, len(self)))

    def rows_of(
        self, ids: Any, name: str, unknown: Literal["raise", "skip"] = "raise"
    ) -> np.ndarray:
        """Return the row of each id, int64; -1 for unknown ones that are skipped."""
        if self.ids is None and unknown == "raise":
            return check_index_array(ids, len(self), name=name)  # quickly
        return self.id_map.rows(ids, name=name, unknown=unknown)

    def rows_to_be(self, ids: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the row of each id, behind the last for new ones, and the ids of all rows then."""
        if self.ids is None:
            return check_index_array(ids, _MOST_ROWS, name=name), None
        rows = self.rows_of(ids, name, "skip")
        new = rows < 0
        if not new.any():
            return rows, self.ids
        names, codes = factorize(to_id_array(ids, name=name)[new])
        if (names.dtype.kind == "i") != (self.ids.dtype.kind == "i"):
            kind = "integers" if self.ids.dtype.kind == "i" else "texts"
            raise InputError(f"{name}: found {names[0]!r}; the ids of this model are {kind}")
        rows[new] = len(self) + codes
        return rows, np.concatenate([self.ids, names])

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the id of each row, and -1 or an empty text for row -1; without ids the rows."""
        if self.ids is None:
            return rows
        found = self.ids[rows] if len(self) else np.zeros(rows.shape, self.ids.dtype)
        if rows.min(initial=0) < 0:
            found[rows < 0] = -1 if found.dtype.kind == "i" else ""
        return found

    def without_ids(self) -> Side:
        """Return a side whose ids are its row numbers; what is derived of both is shared."""
        if self.ids is None:
            return self
        same = {name: found for name, found in self._derived.items() if name != "map of ids"}
        return Side(self.matrix, self.bias, None, same)

    def with_matrix(self, matrix: Any) -> Side:
        """Return a side with other factors, biases included; of another number without ids."""
        same_rows = matrix is not None and np.shape(matrix)[:1] == (len(self),)
        return Side(matrix, self.bias, self.ids if same_rows else None)

    def with_ids(self, ids: Any) -> Side:
        """Return a side with other ids."""
        if ids is not None and np.shape(ids) != (len(self),):
            raise InputError(f"ids must have shape ({len(self)},), not {np.shape(ids)}")
        return Side(self.matrix, self.bias, None if ids is None else np.asarray(ids))

    def with_factors(self, factors: Any) -> Side:
        """Return a side with other factors; biases are zero if their number is another."""
        if factors is None or not self.bias:
            return self.with_matrix(factors)
        factors, biases = np.asarray(factors), self.biases
        if factors.ndim != 2 or factors.dtype not in _DTYPES:
            raise InputError(
                f"user_factors and item_factors must be 2-D arrays of float32 or float64, not "
                f"{factors.dtype} of shape {factors.shape}"
            )
        if biases is None or len(biases) != len(factors):
            biases = np.zeros(len(factors), factors.dtype)
        return self.with_matrix(np.column_stack([factors, biases.astype(factors.dtype)]))

    def with_biases(self, biases: Any) -> Side:
        """Return a side with other biases."""
        biases = np.asarray(biases)
        if biases.shape != (len(self),) or biases.dtype.kind not in "fiu":
            raise InputError(
                f"biases must be numbers of shape ({len(self)},), one for each row of factors, "
                f"not {biases.dtype} of shape {biases.shape}; set the factors first"
            )
        if self.bias:
            factors = np.asarray(self.factors)
            return self.with_matrix(np.column_stack([factors, biases.astype(factors.dtype)]))
        if biases.any():
            raise InputError("biases must be zero in a model with bias=False")
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what to pickle: a NumPy array, and nothing that can be derived."""
        matrix = None if self.matrix is None else np.asarray(self.matrix)
        return {**vars(self), "matrix": matrix, "_derived": {}}


@dataclass(frozen=True, eq=False)
class Fitted:
    """Both sides of a model; that of one without factors has none.

    Attributes
    ----------
    users, items : Side
    mean : float
        What every prediction adds to its row's and its column's bias.
    seen : csr_matrix, shape (n_users, n_items), or None
        A stored entry for each item that is not to be recommended to a user again.
    item_counts : array of int64, shape (n_items,), or None
        How many interactions each item had in training, or when it was last solved for.
    about : dict, or None
        Where the value comes from; see :func:`gpu_als.models.about.about`.
    """

    users: Side = field(default_factory=Side)
    items: Side = field(default_factory=Side)
    mean: float = 0.0
    seen: sp.csr_matrix | None = None
    item_counts: np.ndarray | None = None
    about: dict[str, Any] | None = None

    def held(self, side: str) -> Side:
        """Return the side that is held while "users" or "items" are solved."""
        return self.items if side == "users" else self.users

    def replaced(self, **parts: Any) -> Fitted:
        """Return a value in which some parts are others; what then fits no longer is dropped."""
        found = replace(self, **parts)
        shape = len(found.users), len(found.items)
        if found.seen is not None and found.seen.shape != shape:
            found = replace(found, seen=None)
        if found.item_counts is not None and found.item_counts.shape != shape[1:]:
            found = replace(found, item_counts=None)
        return found

    def seen_with(
        self, side: str, numbers: np.ndarray, rows: sp.csr_matrix, size: int
    ) -> sp.csr_matrix | None:
        """Return what is seen once some rows of one side, which then has ``size``, are others."""
        if self.seen is None:
            return None
        seen = self.seen if side == "users" else self.seen.T.tocsr()
        source = np.minimum(np.arange(size), seen.shape[0])  # rows in between are empty
        source[numbers] = seen.shape[0] + 1 + np.arange(len(numbers))
        gap = sp.csr_matrix((1, seen.shape[1]), dtype=np.bool_)
        changed = sp.vstack([seen, gap, rows.astype(np.bool_)], format="csr")[source]
        return changed if side == "users" else changed.T.tocsr()

    def counts_with(
        self, side: str, numbers: np.ndarray, rows: sp.csr_matrix, size: int
    ) -> np.ndarray | None:
        """Return the counts of items once some rows of one side are others; as ``seen_with``."""
        if self.item_counts is None or side == "users":
            return self.item_counts
        counts = np.zeros(size, np.int64)
        counts[: len(self.item_counts)] = self.item_counts
        counts[numbers] = np.diff(rows.indptr)
        return counts

    def without_ids(self) -> Fitted:
        """Return a value in which row numbers are the ids."""
        return self.replaced(users=self.users.without_ids(), items=self.items.without_ids())

    def checked(self) -> Self:
        """Return this value if it has factors that fit together.

        Raises
        ------
        NotFittedError
            A side has none.
        InputError
            They were set by hand, and are not factors.
        """
        users, items = self.users.matrix, self.items.matrix
        if users is None or items is None:
            raise NotFittedError("this model has no factors yet; call fit or load first")
        for name, side, matrix in (("user", self.users, users), ("item", self.items, items)):
            dtype = getattr(matrix, "dtype", None)
            good = dtype in _DTYPES and getattr(matrix, "ndim", None) == 2
            if not good or matrix.shape[1] <= side.bias:
                raise InputError(
                    f"{name}_factors must be a 2-D array of float32 or float64, with a column at "
                    "least"
                )
        if users.shape[1] != items.shape[1]:
            raise InputError(
                f"user_factors of shape {self.users.factors.shape} and item_factors of shape "
                f"{self.items.factors.shape} must have the same number of columns"
            )
        return self


def norms(xp: Any, factors: Array) -> Array:
    """Return the norm of each row, 1e-10 where it is zero; shape (n,)."""
    found = row_norms(xp, factors)
    return xp.where(found == 0, factors.dtype.type(_SMALLEST_NORM), found)
