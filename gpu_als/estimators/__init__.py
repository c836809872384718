"""What a user holds."""

from gpu_als.estimators.als_step import als_step
from gpu_als.estimators.dense import factorize, loss_and_gradient
from gpu_als.estimators.explicit_als import ExplicitALS
from gpu_als.estimators.implicit_als import AlternatingLeastSquares
from gpu_als.estimators.implicit_loss import calculate_loss

__all__ = [
    "AlternatingLeastSquares",
    "ExplicitALS",
    "als_step",
    "calculate_loss",
    "factorize",
    "loss_and_gradient",
]
