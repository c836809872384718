"""Similar users and similar items: the cosine between their factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.backends.ops import Backend
from gpu_als.data.matrix import check_index_array
from gpu_als.estimators.factors import HasFactors, norms
from gpu_als.estimators.recommending import best_rows
from gpu_als.row_problem import Array

__all__ = ["FindsSimilar"]


class FindsSimilar(HasFactors):
    """Mixin: rows of the same side, ranked by the cosine of the angle to a row's factors.

    Factors of length 1 are worked out at the first call and kept, as large as the factors.
    """

    def recalculate_item(self, itemid: Any, item_users: Any) -> np.ndarray:
        """Solve items from interactions."""
        raise NotImplementedError

    def similar_users(
        self, userid: Any, N: int = 10, filter_users: Any = None, users: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the users most similar to one user, or to each of many.

        Parameters
        ----------
        userid : int or array of int, shape (n,)
        N : int
            Number of users; cut down to the number of candidates.
        filter_users : array of int, optional
            Users to put last, with the lowest finite score.
        users : array of int, optional
            The only candidates.

        Returns
        -------
        ids : int32 array, shape (N,) for one user, else (n, N)
            A user's most similar user is the user itself.
        scores : array of the same shape
            Cosines, falling; equal ones by rising id.

        Raises
        ------
        InputError
            An argument cannot be used; for numbers out of range it is an IndexError too.
        """
        factors = self._checked()[0]
        ids = check_index_array(userid, len(factors), name="userid")
        backend = self._get_backend()
        with backend.session():
            catalogue = self._unit_factors(backend, "users", factors)
            queries = catalogue[backend.from_host(ids)]
        found, scores = best_rows(
            backend, queries, catalogue, N,
            denied_to_all=filter_users, candidates=users, names=("users", "filter_users"),
        )  # fmt: skip
        return (found[0], scores[0]) if np.ndim(userid) == 0 else (found, scores)

    def similar_items(
        self,
        itemid: Any,
        N: int = 10,
        recalculate_item: bool = False,
        item_users: Any = None,
        filter_items: Any = None,
        items: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the items most similar to one item, or to each of many.

        Parameters
        ----------
        itemid : int or array of int, shape (n,)
        N : int
            Number of items; cut down to the number of candidates.
        recalculate_item : bool
            Use factors solved from ``item_users`` instead of the trained ones; ``itemid`` then
            only says how many items there are.
        item_users : sparse matrix, shape (n, n_users), optional
            One row per requested item; needed to recalculate.
        filter_items : array of int, optional
            Items to put last, with the lowest finite score.
        items : array of int, optional
            The only candidates.

        Returns
        -------
        ids : int32 array, shape (N,) for one item, else (n, N)
            An item's most similar item is the item itself.
        scores : array of the same shape
            Cosines, falling; equal ones by rising id.

        Raises
        ------
        InputError
            An argument cannot be used; for numbers out of range it is an IndexError too.
        """
        factors = self._checked()[1]
        known = np.iinfo(np.int64).max if recalculate_item else len(factors)
        ids = check_index_array(itemid, known, name="itemid")
        backend = self._get_backend()
        with backend.session():
            catalogue = self._unit_factors(backend, "items", factors)
            if recalculate_item:
                solved = backend.from_host(self.recalculate_item(ids, item_users))
                queries = solved / norms(backend.xp, solved)[:, None]
            else:
                queries = catalogue[backend.from_host(ids)]
        found, scores = best_rows(
            backend, queries, catalogue, N, denied_to_all=filter_items, candidates=items
        )
        return (found[0], scores[0]) if np.ndim(itemid) == 0 else (found, scores)

    def _unit_factors(self, backend: Backend, side: str, factors: Any) -> Array:
        """Return factors divided by their norms, shape (n, factors), on the device."""

        def divide(factors: Any) -> Array:
            on_device = self._on_device(backend, side, factors)
            return on_device / norms(backend.xp, on_device)[:, None]

        return self._derive(f"unit {side} on {backend.name}", factors, divide)
