"""Files of :class:`~gpu_als.AlternatingLeastSquares`: the keys of ``implicit``, and ours."""

from __future__ import annotations

import os
from typing import BinaryIO, Self

import numpy as np

from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.errors import InputError, ModelFileError
from gpu_als.estimators.external_ids import HasIds
from gpu_als.estimators.factors import HasFactors
from gpu_als.estimators.params import HasParameters, check_integer

__all__ = ["StoredAsNpz"]

_PARAMETERS = (
    "regularization", "factors", "num_threads", "iterations", "use_native", "use_cg", "cg_steps",
    "calculate_training_loss", "random_state", "alpha", "unobserved_weight",
    "regularization_exponent",
)  # fmt: skip


class StoredAsNpz(HasParameters, HasFactors, HasIds):
    """Mixin: ``save`` and ``load``."""

    dtype: np.dtype
    factors: int
    cg_steps: int

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the model to an npz file, atomically; ``.npz`` is appended to a bare name."""
        users, items = (np.asarray(factors) for factors in self._checked())
        arrays = {"user_factors": users, "item_factors": items}
        for name, factors in arrays.items():
            if not np.isfinite(factors).all():
                raise InputError(f"{name} holds NaN or inf; such a model is not worth keeping")
        plain = {name: getattr(self, name) for name in _PARAMETERS}
        plain["factors"] = users.shape[1]  # set_params may have changed it since
        seed = plain["random_state"]
        if not isinstance(seed, int | np.integer):
            plain["random_state"] = None
        plain["dtype"] = self.dtype.name
        plain = {name: value for name, value in plain.items() if value is not None}
        write_arrays(file, arrays | self._ids_to_store() | plain)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> Self:
        """Read a model that :meth:`save` or ``implicit`` wrote.

        Raises
        ------
        ModelFileError
            The file is damaged or holds something else; the message says what.
        """
        stored = read_arrays(file)
        users, items = (
            _stored_factors(stored.pop(name, None), f"{file}: {name}")
            for name in ("user_factors", "item_factors")
        )
        ids = {name: array for name, array in stored.items() if name in ("user_ids", "item_ids")}
        try:
            values = {name: array.item() for name, array in stored.items() if name not in ids}
            lost = {"factors", "regularization", "iterations"} - values.keys()
            if lost:
                raise ModelFileError(f"{file}: the parameters {sorted(lost)} are missing")
            steps = values.pop("cg_steps", 3)
            if values.get("dtype") == "float16":  # of a GPU model of implicit
                values["dtype"] = "float32"
            known = {name: values[name] for name in cls._parameter_names() if name in values}
            model = cls(**known)
            model.cg_steps = check_integer(steps, name="cg_steps", at_least=1)
        except (ValueError, TypeError) as error:
            raise ModelFileError(f"{file}: a stored parameter cannot be used: {error}") from error
        if not users.shape[1] == items.shape[1] == model.factors:
            raise ModelFileError(
                f"{file}: factors of shapes {users.shape} and {items.shape} do not fit "
                f"factors={model.factors}"
            )
        model._place(users.astype(model.dtype), items.astype(model.dtype))
        model._restore_ids(ids, file)
        return model


def _stored_factors(array: np.ndarray | None, where: str) -> np.ndarray:
    """Return factors read from a file after checking that they are a finite matrix."""
    if array is None or array.ndim != 2 or array.dtype.kind != "f":
        raise ModelFileError(
            f"{where} is missing or no matrix of floats; this is no AlternatingLeastSquares model"
        )
    if not np.isfinite(array).all():
        raise ModelFileError(f"{where} holds NaN or inf")
    return array
