"""The best items of many users on the device, a bounded number of users at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.cupy.launch import DeviceLimits
from gpu_als.backends.cupy.top_k import (
    MOST_BEST,
    bits_of,
    padded,
    plan_top_k,
    run_top_k,
    users_per_call,
)
from gpu_als.row_problem import Array

__all__ = ["FusedTopK"]


@dataclass(frozen=True)
class FusedTopK:
    """Ranks items with the kernels of top_k.cu.

    Attributes
    ----------
    xp : module
        CuPy.
    limits : DeviceLimits
    multiprocessors : int
    get_kernel : callable
        ``get_kernel(file, function, macros)`` returns a compiled kernel.
    """

    xp: Any
    limits: DeviceLimits
    multiprocessors: int
    get_kernel: Callable[..., Any]

    def __call__(
        self,
        users: Array,
        items: Array,
        n_best: int,
        liked: sp.csr_matrix | None,
        filter_items: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """See :meth:`gpu_als.backends.ops.Backend.top_k`."""
        if users.dtype != np.float32 or n_best > MOST_BEST:
            return None
        xp = self.xp
        items = padded(xp, items)
        everywhere = None
        if filter_items is not None:
            everywhere = xp.asarray(bits_of(filter_items, len(items)))
        if liked is not None and not liked.has_sorted_indices:
            liked = liked.sorted_indices()
        ids = np.empty((len(users), n_best), np.int32)
        scores = np.empty((len(users), n_best), np.float32)
        height = users_per_call(n_best)
        for start in range(0, len(users), height):
            stop = min(start + height, len(users))
            plan = plan_top_k(
                stop - start,
                len(items),
                users.shape[1],
                n_best,
                self.limits,
                multiprocessors=self.multiprocessors,
            )
            found = run_top_k(
                xp,
                self.get_kernel,
                plan,
                padded(xp, users[start:stop]),
                items,
                excluded=None if liked is None else self._excluded(liked, start, stop),
                excluded_everywhere=everywhere,
            )
            ids[start:stop], scores[start:stop] = (xp.asnumpy(part) for part in found)
        return ids, scores

    def _excluded(self, liked: sp.csr_matrix, start: int, stop: int) -> tuple[Array, Array]:
        """Return the rows of these users on the device."""
        indptr = liked.indptr[start : stop + 1].astype(np.int64)
        indices = liked.indices[indptr[0] : indptr[-1]].astype(np.int32, copy=False)
        return self.xp.asarray(indptr - indptr[0]), self.xp.asarray(indices)
