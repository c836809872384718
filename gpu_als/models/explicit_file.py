"""Files of :class:`~gpu_als.ExplicitALS`."""

from __future__ import annotations

import os
from typing import Any, BinaryIO, Self

import numpy as np

from gpu_als.data.model_file import check_names, read_arrays, to_factors, write_arrays
from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError, ModelFileError
from gpu_als.models.external_ids import HasIds
from gpu_als.models.params import HasParameters
from gpu_als.models.snapshots import of_one_moment
from gpu_als.models.stored_seed import read_seed, stored_seed

__all__ = ["StoredRatingModel"]

_NEEDED = "factors", "regularization", "bias", "iterations", "dtype"
_ARRAYS = (
    "user_factors", "item_factors", "user_biases", "item_biases", "user_ids", "item_ids",
    "global_mean",
)  # fmt: skip
_KIND = "gpu_als.ExplicitALS"


class StoredRatingModel(HasParameters, HasIds):
    """Mixin: ``save`` and ``load``."""

    factors: int
    bias: bool
    dtype: np.dtype
    random_state: Any
    solver: Any
    user_biases: Any
    item_biases: Any
    global_mean: float
    _trained: tuple[int, bool] | None

    @of_one_moment
    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the model to an npz file, atomically; ``.npz`` is appended to a bare name."""
        self._check_unchanged()
        plain = self.get_params()
        for name in ("backend", "num_threads", "precision"):  # of this machine, not of the model
            del plain[name]
        plain["dtype"] = self.dtype.name
        plain["random_state"] = stored_seed(self.random_state)
        if not isinstance(self.solver, str):
            plain["solver"] = None  # an option object; the model is complete without it
        stored = {
            "kind": _KIND,
            "user_factors": self.user_factors,
            "item_factors": self.item_factors,
            "user_biases": self.user_biases,
            "item_biases": self.item_biases,
            "global_mean": self.global_mean,
            **self._ids_to_store(),
            **{f"param_{name}": value for name, value in plain.items()},
        }
        write_arrays(file, {name: value for name, value in stored.items() if value is not None})

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> Self:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        ModelFileError
            The file is damaged or holds something else; the message says what.
        """
        stored = read_arrays(file)
        if str(stored.get("kind", "")) != _KIND:
            raise ModelFileError(f"{file}: no model of ExplicitALS")
        check_names(
            [name.removeprefix("param_") for name in stored],
            needed=_NEEDED,
            known=["kind", *_ARRAYS, *cls._parameters()],
            where=str(file),
        )
        try:
            params = {
                name.removeprefix("param_"): value.tolist()
                for name, value in stored.items()
                if name.startswith("param_")
            }
            params["random_state"] = read_seed(params.get("random_state"))
            check_random_state(params["random_state"])
            if isinstance(params.get("regularization"), list):
                params["regularization"] = tuple(params["regularization"])
            params.setdefault("scale_regularization", None)
            model = cls(**params)
        except (ValueError, TypeError) as error:
            raise ModelFileError(f"{file}: a stored parameter cannot be used: {error}") from error
        for side in ("user", "item"):
            factors, biases = stored.get(f"{side}_factors"), stored.get(f"{side}_biases")
            if (
                factors is None
                or biases is None
                or factors.ndim != 2
                or factors.shape[1] != model.factors
                or biases.shape != factors.shape[:1]
                or factors.dtype.kind != "f"
                or biases.dtype.kind != "f"
            ):
                raise ModelFileError(f"{file}: the {side} factors are missing or inconsistent")
            for name, array in ((f"{side}_factors", factors), (f"{side}_biases", biases)):
                setattr(model, name, to_factors(array, model.dtype, f"{file}: {name}"))
        model._restore_ids(stored, file)
        mean = stored.get("global_mean", np.zeros(0))
        if mean.shape != () or mean.dtype.kind != "f" or not abs(mean) < np.finfo(model.dtype).max:
            raise ModelFileError(f"{file}: global_mean is missing or no number")
        model.global_mean = float(mean)
        model._trained = model.factors, model.bias
        return model

    def _check_unchanged(self) -> None:
        """Refuse a model whose shape set_params has changed since it was trained."""
        self._check_fitted()
        if self._trained != (self.factors, self.bias):
            raise InputError(
                "factors or bias were changed by set_params after training; call fit again"
            )
