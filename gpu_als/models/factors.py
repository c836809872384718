"""A model's two factor matrices: where they live, and what follows from them."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from gpu_als.core.backend import Backend
from gpu_als.core.linalg import row_dots
from gpu_als.core.problem import Array
from gpu_als.errors import BackendError
from gpu_als.models.snapshots import HasSnapshots, of_one_moment
from gpu_als.ranking.top_k import check_pairs, pair_scores

__all__ = ["HasFactors", "norms"]

_SMALLEST_NORM = 1e-10
"""What stands for a norm of zero, as in ``implicit``, so that one can divide by it."""


class HasFactors(HasSnapshots):
    """Mixin: ``user_factors`` and ``item_factors``, on the host or on the GPU.

    Both are held in one tuple that is replaced as a whole.
    """

    use_gpu: bool | None
    _factors: tuple[Any, Any]

    def _init_factors(self) -> None:
        self._factors = None, None
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._writing = threading.RLock()

    @property
    def user_factors(self) -> Any:
        """Array or GPU matrix, shape (n_users, factors); None before training."""
        return self._factors[0]

    @user_factors.setter
    def user_factors(self, factors: Any) -> None:
        with self._writing:
            self._publish(_factors=(factors, self._factors[1]))

    @property
    def item_factors(self) -> Any:
        """Array or GPU matrix, shape (n_items, factors); None before training."""
        return self._factors[1]

    @item_factors.setter
    def item_factors(self, factors: Any) -> None:
        with self._writing:
            self._publish(_factors=(self._factors[0], factors))

    @property
    def user_norms(self) -> np.ndarray:
        """Euclidean norm of each user's factors, shape (n_users,); 1e-10 for those of zero."""
        return self._on_host("user_norms", self._checked()[0], norms)

    @property
    def item_norms(self) -> np.ndarray:
        """Euclidean norm of each item's factors, shape (n_items,); 1e-10 for those of zero."""
        return self._on_host("item_norms", self._checked()[1], norms)

    @property
    def XtX(self) -> np.ndarray:
        """``X^T X`` of the user factors, shape (factors, factors)."""
        return self._on_host("XtX", self._checked()[0], _gram)

    @property
    def YtY(self) -> np.ndarray:
        """``Y^T Y`` of the item factors, shape (factors, factors)."""
        return self._on_host("YtY", self._checked()[1], _gram)

    def to_cpu(self) -> Self:
        """Return a copy of the model that works on the CPU, with its factors as NumPy arrays."""
        return self._moved(use_gpu=False)

    def to_gpu(self) -> Self:
        """Return a copy of the model that works on the GPU and keeps its factors there.

        Raises
        ------
        BackendError
            There is no GPU, or no CuPy; the message says what to install.
        """
        return self._moved(use_gpu=True)

    @of_one_moment
    def predict(self, users: Any, items: Any) -> np.ndarray:
        """Return the scores of (user, item) pairs.

        Parameters
        ----------
        users, items : int or array of int, shape (n,)
            Row and column numbers; see :meth:`user_index` for ids.

        Returns
        -------
        array, shape (n,)
            Of the factors' dtype.
        """
        both = self._checked()
        pairs = check_pairs(users, items, len(both[0]), len(both[1]))
        backend = self._get_backend()
        with backend.session():
            on_device = self._both_on_device(backend, both)
            rows, columns = (backend.from_host(numbers) for numbers in pairs)
            return backend.to_host(pair_scores(backend.xp, *on_device, rows, columns))

    def _moved(self, *, use_gpu: bool) -> Self:
        moved = copy.copy(self)
        moved.use_gpu = use_gpu
        moved._place(*(None if one is None else np.array(one) for one in moved._factors))
        return moved

    def _place(self, users: Any, items: Any, **others: Any) -> None:
        """Take over both matrices, moved to where this model works, and other attributes."""
        backend = self._get_backend()
        users, items = (
            None if factors is None else backend.to_device(factors) for factors in (users, items)
        )
        with self._writing:
            self._publish(_factors=(users, items), **others)

    def _on_device(self, backend: Backend, side: str, factors: Any) -> Any:
        """Return one side's factors as an array of the backend, uploaded once."""
        return self._derive(f"{side} on {backend.name}", factors, backend.from_host)

    def _on_host(self, name: str, factors: Any, compute: Callable[[Any, Any], Any]) -> np.ndarray:
        """Return ``compute(xp, factors)`` as a NumPy array, worked out once on the device."""
        backend = self._get_backend()

        def run(factors: Any) -> np.ndarray:
            with backend.session():
                return backend.to_host(compute(backend.xp, backend.from_host(factors)))

        return self._derive(name, factors, run)

    def _both_on_device(self, backend: Backend, both: tuple[Any, Any]) -> tuple[Array, Array]:
        users, items = both
        return self._on_device(backend, "users", users), self._on_device(backend, "items", items)

    def _checked(self) -> tuple[Any, Any]:
        """Return both matrices, after checking that the model has some."""
        raise NotImplementedError

    def _get_backend(self) -> Backend:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """Return what to pickle or copy: factors as NumPy arrays, nothing that can be derived."""
        state = super().__getstate__()
        del state["_writing"]
        state["_factors"] = tuple(
            None if factors is None else np.asarray(factors) for factors in state["_factors"]
        )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Unpickled where there is no GPU: whatever needs one says so, and to_cpu() helps.
        with contextlib.suppress(BackendError):
            self._place(*self._factors)


def norms(xp: Any, factors: Any) -> Any:
    """Return the norm of each row, 1e-10 where it is zero; shape (n,)."""
    squares = row_dots(xp, factors, factors).astype(xp.float64)
    found = xp.sqrt(squares).astype(factors.dtype)
    return xp.where(found == 0, factors.dtype.type(_SMALLEST_NORM), found)


def _gram(xp: Any, factors: Any) -> Any:
    return factors.T @ factors
