"""Users and items solved on their own after training: folded in, recalculated, or stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.core.backend import Backend
from gpu_als.core.basis import FixedSide, SideRidge
from gpu_als.core.half_sweep import hold_fixed
from gpu_als.core.objectives import IALS, Implicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky
from gpu_als.data.csr import as_csr, check_index_array, check_magnitude
from gpu_als.errors import InputError
from gpu_als.models.factors import HasFactors
from gpu_als.models.recommend import requested_rows
from gpu_als.models.sides import fold_in
from gpu_als.models.snapshots import of_one_moment

__all__ = ["SolvesNewRows", "check_confidences"]

_MOST_ROWS = 2**31 - 1
"""Ids are int32."""


class SolvesNewRows(HasFactors):
    """Mixin: exact half-sweeps over some rows of one side, with the other side held."""

    alpha: float
    dtype: np.dtype
    user_ids: np.ndarray | None
    item_ids: np.ndarray | None

    def _objective(self) -> Implicit | IALS:
        raise NotImplementedError

    @of_one_moment
    def recalculate_user(self, userid: Any, user_items: Any) -> np.ndarray:
        """Return user factors solved exactly from ``user_items``; nothing is stored.

        Parameters
        ----------
        userid : int or array of int, shape (n,)
            Only says how many users there are, and whether one is meant.
        user_items : sparse matrix, shape (n, n_items)

        Returns
        -------
        array, shape (factors,) for one user, else (n, factors)
        """
        n_users = _how_many(userid)
        solved = self._solve("users", user_items, 1 if n_users is None else n_users)
        return solved[0] if n_users is None else solved

    @of_one_moment
    def recalculate_item(self, itemid: Any, item_users: Any) -> np.ndarray:
        """Return item factors solved exactly from ``item_users``; nothing is stored.

        Parameters
        ----------
        itemid : int or array of int, shape (n,)
            Only says how many items there are, and whether one is meant.
        item_users : sparse matrix, shape (n, n_users)

        Returns
        -------
        array, shape (factors,) for one item, else (n, factors)
        """
        n_items = _how_many(itemid)
        solved = self._solve("items", item_users, 1 if n_items is None else n_items)
        return solved[0] if n_items is None else solved

    @of_one_moment
    def fold_in_users(self, user_items: Any) -> np.ndarray:
        """Return factors of users that were not trained on, exactly as a half-sweep would.

        Parameters
        ----------
        user_items : sparse matrix, shape (n, n_items)

        Returns
        -------
        array, shape (n, factors)
            Zero for rows without entries.
        """
        return self._solve("users", user_items)

    @of_one_moment
    def fold_in_items(self, item_users: Any) -> np.ndarray:
        """Return factors of items that were not trained on, exactly as a half-sweep would.

        Parameters
        ----------
        item_users : sparse matrix, shape (n, n_users)

        Returns
        -------
        array, shape (n, factors)
            Zero for rows without entries.
        """
        return self._solve("items", item_users)

    def partial_fit_users(self, userids: Any, user_items: Any) -> None:
        """Solve some users exactly and store them; the items stay as they are.

        Numbers beyond the last user make the model grow; users in between get factors of zero.
        The matrix of all users is copied, so that whoever reads the model meanwhile never sees
        half of the change: better many users in one call than one in each of many.

        Parameters
        ----------
        userids : int or array of int, shape (n,)
        user_items : sparse matrix, shape (n, n_items)
            All interactions of each of these users.

        Raises
        ------
        InputError
            An argument cannot be used, or a model with ids would grow.
        """
        self._replace_rows("users", userids, user_items, "userids")

    def partial_fit_items(self, itemids: Any, item_users: Any) -> None:
        """Solve some items exactly and store them, as :meth:`partial_fit_users` does users.

        Parameters
        ----------
        itemids : int or array of int, shape (n,)
        item_users : sparse matrix, shape (n, n_users)
            All interactions with each of these items.
        """
        self._replace_rows("items", itemids, item_users, "itemids")

    def _solve(self, side: str, matrix: Any, n_rows: int | None = None) -> np.ndarray:
        """Return the exact factors of rows of one side given by ``matrix``, on the host."""
        users, items = self._checked()
        fixed, partner = (items, "items") if side == "users" else (users, "users")
        name = "user_items" if side == "users" else "item_users"
        if n_rows is None:
            matrix = as_csr(matrix, name=name, dtype=self.dtype)
            n_rows = matrix.shape[0]
        if n_rows == 0:
            return np.zeros((0, fixed.shape[1]), fixed.dtype)
        why = "solve for their factors"
        rows = requested_rows(matrix, n_rows, len(fixed), why, name=name, dtype=self.dtype)
        check_confidences(rows, self.alpha, name)
        backend, objective = self._get_backend(), self._objective()
        entries = SparseRows.from_csr(rows)
        with backend.session():
            on_device = self._on_device(backend, partner, fixed)
            known = self._held(backend, objective, side, partner, fixed)
            return fold_in(backend, objective, entries, side, on_device, Cholesky(), held=known)

    def _held(
        self, backend: Backend, objective: Any, side: str, partner: str, fixed: Any
    ) -> FixedSide:
        """Return the fixed side as half-sweeps hold it, from the last time.

        That saves a pass over all of the other side for every few rows.
        """
        # No row has a smaller ridge than one without entries.
        ridge = SideRidge.of(objective.ridge(np.zeros(1, np.int64), len(fixed), side))
        return self._derive(
            f"{partner} held",
            fixed,
            lambda _: hold_fixed(
                backend, objective, side, self._on_device(backend, partner, fixed), ridge
            ),
            given=(backend.name, objective),
        )

    def _replace_rows(self, side: str, ids: Any, matrix: Any, name: str) -> None:
        known_ids = self.user_ids if side == "users" else self.item_ids
        with self._writing:
            numbers = check_index_array(ids, _MOST_ROWS, name=name)
            solved = self._solve(side, matrix, len(numbers))
            place = 0 if side == "users" else 1
            former = self._factors[place]
            size = max(len(former), int(numbers.max(initial=-1)) + 1)
            if size > len(former) and known_ids is not None:
                raise InputError(
                    f"{name}: {size - 1} is beyond the {len(former)} {side} whose ids the model "
                    f"knows; train it on all of them, or use fold_in_{side}"
                )
            backend = self._get_backend()
            with backend.session():
                xp = backend.xp
                grown = xp.zeros((size, former.shape[1]), former.dtype)
                grown[: len(former)] = backend.from_host(former)
                grown[backend.from_host(numbers)] = backend.from_host(solved)
                both = list(self._factors)
                both[place] = backend.to_device(grown)
                self._publish(_factors=(both[0], both[1]))


def _how_many(ids: Any) -> int | None:
    """Return the number of ids, whatever they are; None for one that is not in a list."""
    try:
        return None if isinstance(ids, str) else len(ids)
    except TypeError:
        return None


def check_confidences(matrix: sp.csr_matrix, alpha: float, name: str, first_row: int = 0) -> None:
    """Refuse values whose confidence, or its square, leaves the range of their dtype."""
    check_magnitude(matrix, dtype=matrix.dtype, name=name, first_row=first_row)
    data = matrix.data
    largest = alpha * float(max(data.max(initial=0), -data.min(initial=0)))
    if largest > float(np.finfo(matrix.dtype).max) ** (1 / 3):
        raise InputError(
            f"alpha * {name} reaches {largest:g}, whose square overflows {matrix.dtype}; "
            "lower alpha or rescale the values"
        )
