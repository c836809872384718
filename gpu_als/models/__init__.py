"""What a user holds."""

from __future__ import annotations

import os
from typing import BinaryIO, Literal

from gpu_als.models.dense import als_step, factorize, loss_and_gradient
from gpu_als.models.estimator import load_as
from gpu_als.models.explicit import ExplicitALS
from gpu_als.models.implicit import AlternatingLeastSquares, calculate_loss

__all__ = [
    "AlternatingLeastSquares",
    "ExplicitALS",
    "als_step",
    "calculate_loss",
    "factorize",
    "load",
    "loss_and_gradient",
]


def load(
    file: str | os.PathLike[str] | BinaryIO, *, mmap_mode: Literal["r"] | None = None
) -> AlternatingLeastSquares | ExplicitALS:
    """Read a model of either class, whichever the file holds.

    Parameters
    ----------
    file, mmap_mode
        As :meth:`AlternatingLeastSquares.load` takes them.

    Raises
    ------
    ModelFileError
        The file is damaged or holds something else; the message says what.
    """
    model: AlternatingLeastSquares | ExplicitALS = load_as(
        (AlternatingLeastSquares, ExplicitALS), file, mmap_mode=mmap_mode
    )
    return model
