"""Files of :class:`~gpu_als.AlternatingLeastSquares`: the keys of ``implicit``, and ours."""

from __future__ import annotations

import os
from typing import BinaryIO, Self

import numpy as np

from gpu_als.data.model_file import check_names, read_arrays, to_factors, write_arrays
from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError, ModelFileError
from gpu_als.models.external_ids import HasIds
from gpu_als.models.factors import HasFactors
from gpu_als.models.params import HasParameters, check_flag, check_integer
from gpu_als.models.stored_seed import read_seed, stored_seed

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
        """Write the model to an npz file, atomically; ``.npz`` is appended to a bare name.

        What other threads do to the model meanwhile changes nothing of what is written.

        Raises
        ------
        InputError
            The factors hold NaN or inf.
        OSError
            The file cannot be written; what was there before is left as it was. (A file object is
            left as far as it got.)
        """
        model = self._snapshot()
        users, items = (np.asarray(factors) for factors in model._checked())
        arrays = {"user_factors": users, "item_factors": items}
        for name, factors in arrays.items():
            if not np.isfinite(factors).all():
                raise InputError(f"{name} holds NaN or inf; such a model is not worth keeping")
        plain = {name: getattr(model, name) for name in _PARAMETERS}
        plain["factors"] = users.shape[1]  # set_params may have changed it since
        plain["random_state"] = stored_seed(plain["random_state"])
        plain["dtype"] = model.dtype.name
        plain = {name: value for name, value in plain.items() if value is not None}
        write_arrays(file, arrays | model._ids_to_store() | plain)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> Self:
        """Read a model that :meth:`save` or ``implicit`` wrote.

        Nothing is unpickled, and no more memory is taken than the file accounts for.

        Raises
        ------
        ModelFileError
            The file is damaged or holds something else; the message says what.
        """
        stored = read_arrays(file)
        users, items = (
            _matrix(stored.pop(name, None), f"{file}: {name}")
            for name in ("user_factors", "item_factors")
        )
        ids = {name: stored.pop(name) for name in list(stored) if name in ("user_ids", "item_ids")}
        check_names(
            stored,
            needed=("factors", "regularization", "iterations"),
            known=(*_PARAMETERS, "dtype"),
            where=str(file),
        )
        try:
            values = {name: array.item() for name, array in stored.items()}
            for name in ("use_native", "calculate_training_loss"):
                check_flag(values.get(name, False), name=name)
            values["random_state"] = read_seed(values.get("random_state"))
            check_random_state(values["random_state"])
            steps = check_integer(values.pop("cg_steps", 3), name="cg_steps", at_least=1)
            if values.get("dtype") == "float16":  # of a GPU model of implicit
                values["dtype"] = "float32"
            names = cls._parameters()
            model = cls(**{name: value for name, value in values.items() if name in names})
        except (ValueError, TypeError) as error:
            raise ModelFileError(f"{file}: a stored parameter cannot be used: {error}") from error
        model.cg_steps = steps
        if not users.shape[1] == items.shape[1] == model.factors:
            raise ModelFileError(
                f"{file}: factors of shapes {users.shape} and {items.shape} do not fit "
                f"factors={model.factors}"
            )
        model._place(
            to_factors(users, model.dtype, f"{file}: user_factors"),
            to_factors(items, model.dtype, f"{file}: item_factors"),
        )
        model._restore_ids(ids, file)
        return model


def _matrix(array: np.ndarray | None, where: str) -> np.ndarray:
    """Return an array of a file after checking that it may be a matrix of factors."""
    if array is None or array.ndim != 2 or array.dtype.kind != "f":
        raise ModelFileError(
            f"{where} is missing or no matrix of floats; this is no AlternatingLeastSquares model"
        )
    return array
