"""Items that users are not to get: those they like, and those nobody is to get."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

__all__ = ["Filters"]


@dataclass(frozen=True)
class Filters:
    """Filtered items.

    Attributes
    ----------
    liked : csr_matrix, shape (n_users, n_items), or None
        The items filtered for each user: stored entries, in any order.
    everywhere : int64 array or None
        Items filtered for every user; rising, each once.
    """

    liked: sp.csr_matrix | None
    everywhere: np.ndarray | None

    def places(self, start: int, stop: int) -> np.ndarray | None:
        """Return rising numbers ``item * (stop - start) + user - start`` of what users like."""
        if self.liked is None:
            return None
        ends = self.liked.indptr[start : stop + 1]
        places = self.liked.indices[ends[0] : ends[-1]].astype(np.int64)
        places *= stop - start
        places += np.repeat(np.arange(stop - start), np.diff(ends))
        places.sort()
        return places

    def followers(self, user: int, best: np.ndarray, n_items: int, count: int) -> np.ndarray:
        """Return the ``count`` items that follow the best: others by id, then filtered by id.

        Parameters
        ----------
        user : int
        best : int array
            Not filtered.
        n_items : int
        count : int
            At most ``n_items - len(best)``.
        """
        filtered = [np.empty(0, np.int64) if self.everywhere is None else self.everywhere]
        if self.liked is not None:
            begin, end = self.liked.indptr[user : user + 2]
            filtered.append(self.liked.indices[begin:end])
        # So many items hold count others, wherever the rest lie.
        n_seen = min(n_items, count + len(best) + sum(map(len, filtered)))
        is_filtered, is_best = np.zeros((2, n_seen), bool)
        for some in filtered:
            is_filtered[some[some < n_seen]] = True
        is_best[best[best < n_seen]] = True
        others = np.flatnonzero(~(is_filtered | is_best))[:count]
        return np.append(others, np.flatnonzero(is_filtered)[: count - len(others)])
