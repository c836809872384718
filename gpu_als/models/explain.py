"""Why an item is recommended to a user: its score as a sum over what the user liked."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from gpu_als.core.basis import gram
from gpu_als.core.objectives import IALS, Implicit
from gpu_als.data.csr import as_csr, check_index_array
from gpu_als.errors import InputError
from gpu_als.models.factors import HasFactors
from gpu_als.models.fold_in import check_confidences
from gpu_als.models.params import check_integer
from gpu_als.models.recommend import requested_rows
from gpu_als.models.snapshots import of_one_moment

__all__ = ["Explains"]

UserWeights = tuple[np.ndarray, bool]
"""A Cholesky factor of a user's system, as :func:`scipy.linalg.cho_factor` returns it."""


class Explains(HasFactors):
    """Mixin: ``explain``."""

    alpha: float
    dtype: np.dtype

    def _objective(self) -> Implicit | IALS:
        raise NotImplementedError

    @of_one_moment
    def explain(
        self,
        userid: int,
        user_items: Any,
        itemid: int,
        user_weights: UserWeights | None = None,
        N: int = 10,
    ) -> tuple[float, list[tuple[int, float]], UserWeights]:
        """Say why an item gets its score: the share of each item that the user liked.

        The score is that of exactly solved factors of the user.

        Parameters
        ----------
        userid : int
            A row of ``user_items``.
        user_items : sparse matrix, shape (n_users, n_items)
            The interactions of all users.
        itemid : int
        user_weights : optional
            What an earlier call returned for this user; saves time.
        N : int
            Number of items to show.

        Returns
        -------
        score : float
        contributions : list of (int, float)
            The N items that add most, and how much: the largest first. What was disliked is left
            out; its influence is in ``user_weights``.
        user_weights : (array, bool)
            For further calls about this user.

        References
        ----------
        Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, ICDM 2008,
        section 5.
        """
        held = self._checked()[1]
        items = np.asarray(held)
        if not np.isfinite(items).all():
            raise InputError("item_factors hold NaN or inf, so no score can be explained")
        matrix = as_csr(user_items, name="user_items", dtype=self.dtype)
        user = _check_one(userid, matrix.shape[0], "userid")
        item = _check_one(itemid, len(items), "itemid")
        row = requested_rows(matrix[user], 1, len(items), "explain", dtype=self.dtype)
        check_confidences(row, self.alpha, "user_items")
        n_best = check_integer(N, name="N", at_least=1)
        objective = self._objective()
        if user_weights is None:
            backend = self._get_backend()
            wide = self._on_host("YtY in float64", held, lambda _, y: gram(backend, y))
            weights = factor_system(objective, row, items, wide)
        else:
            weights = check_user_weights(user_weights, items.shape[1])
        return *contributions(objective, row, items, item, weights, n_best), weights


def _check_one(number: Any, size: int, name: str) -> int:
    found = check_index_array(number, size, name=name)
    if len(found) != 1:
        raise InputError(f"{name}: found {len(found)} numbers; pass one")
    return int(found[0])


def factor_system(
    objective: Implicit | IALS, row: sp.csr_matrix, items: np.ndarray, gram: np.ndarray
) -> UserWeights:
    """Factor ``base + sum_i g_i y_i y_i^T + ridge I``, the system of one user, in float64.

    Parameters
    ----------
    row : csr_matrix, shape (1, n_items)
    items : array, shape (n_items, k)
    gram : array, shape (k, k)
        ``items^T items``.
    """
    weight, _ = objective.entry_weights(np, row.data.astype(np.float64), None)
    ridge = objective.ridge(np.array([row.nnz]), len(items), "users")
    liked = items[row.indices].astype(np.float64)
    lhs = objective.base_weight * gram + float(np.max(ridge)) * np.eye(len(gram))
    lhs += liked.T @ (weight[:, None] * liked)
    try:
        factor, lower = scipy.linalg.cho_factor(lhs)
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"user_items: this user's system is singular ({error}); raise regularization"
        ) from error
    return factor, lower


def contributions(
    objective: Implicit | IALS,
    row: sp.csr_matrix,
    items: np.ndarray,
    itemid: int,
    weights: UserWeights,
    n_best: int,
) -> tuple[float, list[tuple[int, float]]]:
    """Split the score of an item, ``y_i^T lhs^-1 sum_j t_j y_j``, over the liked items j.

    Returns
    -------
    score : float
        The sum over all liked items.
    best : list of (int, float)
        The ``n_best`` largest contributions, falling; equal ones by rising id.

    References
    ----------
    Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, ICDM 2008,
    section 5.
    """
    target = objective.entry_weights(np, row.data.astype(np.float64), None)[1]
    liked = row.indices[target > 0]  # what was disliked pulls towards 0, not towards an item
    weighted_item = scipy.linalg.cho_solve(weights, items[itemid].astype(np.float64))
    share = (items[liked].astype(np.float64) @ weighted_item) * target[target > 0]
    order = np.argsort(-share, kind="stable")[:n_best]
    best = [(int(liked[place]), float(share[place])) for place in order]
    return float(share.sum()), best


def check_user_weights(weights: Any, k: int) -> UserWeights:
    """Return what an earlier call gave back, after checking that it fits ``k`` factors."""
    if isinstance(weights, tuple | list) and len(weights) == 2:
        factor = np.asarray(weights[0])
        if factor.shape == (k, k) and factor.dtype.kind == "f":
            return factor, bool(weights[1])
    raise InputError(
        f"user_weights must be what an earlier call of explain returned for a model of {k} "
        "factors, or None"
    )
