"""Methods that ``implicit`` has declared deprecated and that programs still call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gpu_als.data.csr import as_csr, check_index_array
from gpu_als.models.params import check_integer

__all__ = ["DeprecatedMethods"]


class DeprecatedMethods:
    """Mixin: ``rank_items`` and ``recommend_all``."""

    recommend: Callable[..., tuple[np.ndarray, np.ndarray]]

    def rank_items(
        self, userid: Any, user_items: Any, selected_items: Any, recalculate_user: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank some items; deprecated, as in ``implicit``: use ``recommend(items=...)``."""
        _deprecated("rank_items", "recommend with items=selected_items")
        selected = check_index_array(selected_items, np.iinfo(np.int64).max, name="selected_items")
        return self.recommend(
            userid, user_items, max(len(selected), 1), False,
            recalculate_user=recalculate_user, items=selected,
        )  # fmt: skip

    def recommend_all(
        self,
        user_items: Any,
        N: int = 10,
        recalculate_user: bool = False,
        filter_already_liked_items: bool = True,
        filter_items: Any = None,
        users_items_offset: int = 0,
    ) -> np.ndarray:
        """Recommend to all users; deprecated, as in ``implicit``: use ``recommend``.

        Returns
        -------
        int32 array, shape (n_users, N)
            The items of users ``users_items_offset`` and following, one row of ``user_items`` for
            each.
        """
        _deprecated("recommend_all", "recommend with an array of users, or recommend_to_file")
        offset = check_integer(users_items_offset, name="users_items_offset", at_least=0)
        users = np.arange(as_csr(user_items, name="user_items").shape[0]) + offset
        return self.recommend(
            users, user_items, N, filter_already_liked_items, filter_items, recalculate_user
        )[0]


def _deprecated(name: str, instead: str) -> None:
    warnings.warn(f"{name} is deprecated; use {instead}", DeprecationWarning, stacklevel=3)
