"""Exact alternating least squares on GPU and CPU."""

from gpu_als import errors, evaluation, metrics, solvers
from gpu_als.data import Interactions, read_interactions
from gpu_als.errors import GpuAlsError
from gpu_als.estimators import (
    AlternatingLeastSquares,
    ExplicitALS,
    als_step,
    factorize,
    loss_and_gradient,
)
from gpu_als.report import FitReport
from gpu_als.training import StopTraining

__version__ = "0.1.0"

__all__ = [
    "AlternatingLeastSquares",
    "ExplicitALS",
    "FitReport",
    "GpuAlsError",
    "Interactions",
    "StopTraining",
    "als_step",
    "errors",
    "evaluation",
    "factorize",
    "loss_and_gradient",
    "metrics",
    "read_interactions",
    "solvers",
]
