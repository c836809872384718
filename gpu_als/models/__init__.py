"""What a user holds."""

from gpu_als.models.dense import als_step, factorize, loss_and_gradient
from gpu_als.models.explicit import ExplicitALS
from gpu_als.models.implicit import AlternatingLeastSquares, calculate_loss

__all__ = [
    "AlternatingLeastSquares",
    "ExplicitALS",
    "als_step",
    "calculate_loss",
    "factorize",
    "loss_and_gradient",
]
