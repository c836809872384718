"""The ids of a model's users and items: remembered from training, stored, and looked up."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gpu_als.data.ids import IdMap
from gpu_als.errors import InputError, ModelFileError, NotFittedError
from gpu_als.models.snapshots import HasSnapshots, of_one_moment

__all__ = ["HasIds"]


class HasIds(HasSnapshots):
    """Mixin: a model with factors, and perhaps ids, of users and items."""

    user_factors: Any
    item_factors: Any
    user_ids: np.ndarray | None = None
    item_ids: np.ndarray | None = None

    def user_index(self, ids: Any, *, unknown: Literal["raise", "drop"] = "raise") -> np.ndarray:
        """Return the row numbers of users given by id.

        Parameters
        ----------
        ids : id or array-like of ids, shape (n,)
            Integers or strings, whichever the training data had. A model without ids takes row
            numbers.
        unknown : {"raise", "drop"}
            Whether an unknown id is an error or gets row -1.

        Returns
        -------
        ndarray of int64, shape (n,)

        Raises
        ------
        InputError
            For unknown ids; an :class:`~gpu_als.errors.IdRangeError` where row numbers are ids.
        """
        return self._rows_of("user", ids, unknown)

    def item_index(self, ids: Any, *, unknown: Literal["raise", "drop"] = "raise") -> np.ndarray:
        """Return the column numbers of items given by id, as :meth:`user_index` does for users."""
        return self._rows_of("item", ids, unknown)

    @of_one_moment
    def _rows_of(self, side: str, ids: Any, unknown: Literal["raise", "drop"]) -> np.ndarray:
        self._check_fitted()
        size = len(getattr(self, f"{side}_factors"))
        known_ids = getattr(self, f"{side}_ids")
        known = self._derive(
            f"map of {side} ids", known_ids, lambda known_ids: IdMap(known_ids, size), given=size
        )
        return known.rows(ids, name=f"{side} ids", unknown=unknown)

    @staticmethod
    def _ids_of(interactions: Any) -> dict[str, Any]:
        """Return the ids of the training data, to remember; a plain matrix has none."""
        return {name: getattr(interactions, name, None) for name in ("user_ids", "item_ids")}

    def _ids_to_store(self) -> dict[str, np.ndarray]:
        """Return the arrays of ids that a model file needs."""
        stored = {"user_ids": self.user_ids, "item_ids": self.item_ids}
        return {name: ids for name, ids in stored.items() if ids is not None}

    def _restore_ids(self, stored: dict[str, np.ndarray], file: Any) -> None:
        """Take over the ids that a model file holds, once the factors are set."""
        for side, factors in (("user", self.user_factors), ("item", self.item_factors)):
            ids = stored.get(f"{side}_ids")
            if ids is not None and (ids.shape != (len(factors),) or ids.dtype.kind not in "iuU"):
                raise ModelFileError(
                    f"{file}: {side}_ids must hold one integer or string for each of the "
                    f"{len(factors)} {side}s, not {ids.dtype} of shape {ids.shape}"
                )
            setattr(self, f"{side}_ids", ids)

    def _check_fitted(self) -> None:
        if self.user_factors is None or self.item_factors is None:
            raise NotFittedError("this model has no factors yet; call fit or load first")
        for name in ("user_factors", "item_factors"):
            factors = getattr(self, name)
            known = getattr(factors, "dtype", None) in (np.float32, np.float64)
            if not known or getattr(factors, "ndim", None) != 2 or factors.shape[1] == 0:
                raise InputError(
                    f"{name} must be a 2-D array of float32 or float64, with a column at least"
                )
        if self.user_factors.shape[1] != self.item_factors.shape[1]:
            raise InputError(
                f"user_factors of shape {self.user_factors.shape} and item_factors of shape "
                f"{self.item_factors.shape} must have the same number of columns"
            )
