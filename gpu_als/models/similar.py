"""Similar users and similar items: the cosine between their factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.core.backend import Backend
from gpu_als.core.problem import Array
from gpu_als.data.csr import check_index_array
from gpu_als.models.factors import HasFactors, norms
from gpu_als.models.recommend import best_rows
from gpu_als.models.snapshots import of_one_moment

__all__ = ["FindsSimilar"]


class FindsSimilar(HasFactors):
    """Mixin: rows of the same side, ranked by the cosine of the angle to a row's factors.

    Factors of length 1 are worked out at the first call and kept, as large as the factors.
    """

    def recalculate_item(self, itemid: Any, item_users: Any) -> np.ndarray:
        """Solve items from interactions."""
        raise NotImplementedError

    @of_one_moment
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
        names = "userid", "users", "filter_users"
        return self._similar("users", userid, N, filter_users, users, names)

    @of_one_moment
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
        names = "itemid", "items", "filter_items"
        queries = None
        if recalculate_item:
            numbers = check_index_array(itemid, np.iinfo(np.int64).max, name="itemid")
            queries = self.recalculate_item(numbers, item_users)
        return self._similar("items", itemid, N, filter_items, items, names, queries)

    def _similar(
        self,
        side: str,
        wanted: Any,
        n_best: int,
        denied: Any,
        candidates: Any,
        names: tuple[str, str, str],
        queries: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank one side; ``names`` are those of the arguments ids, candidates and denied."""
        factors = self._checked()[0 if side == "users" else 1]
        known = len(factors) if queries is None else np.iinfo(np.int64).max
        ids = check_index_array(wanted, known, name=names[0])
        backend = self._get_backend()
        with backend.session():
            catalogue = self._unit_factors(backend, side, factors)
            if queries is None:
                unit = catalogue[backend.from_host(ids)]
            else:
                solved = backend.from_host(queries)
                unit = solved / norms(backend.xp, solved)[:, None]
            found, scores = best_rows(
                backend, unit, catalogue, n_best,
                denied_to_all=denied, candidates=candidates, names=names[1:],
            )  # fmt: skip
        return (found[0], scores[0]) if np.ndim(wanted) == 0 else (found, scores)

    def _unit_factors(self, backend: Backend, side: str, factors: Any) -> Array:
        """Return factors divided by their norms, shape (n, factors), on the device."""

        def divide(factors: Any) -> Array:
            on_device = self._on_device(backend, side, factors)
            return on_device / norms(backend.xp, on_device)[:, None]

        return self._derive(f"unit {side} on {backend.name}", factors, divide)
