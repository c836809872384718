"""The names of the package, which :mod:`gpu_als` gives once one of them is asked for."""

from gpu_als import datasets, errors, evaluation, metrics
from gpu_als.core import solvers
from gpu_als.data import Interactions, read_interactions
from gpu_als.errors import GpuAlsError, ModelFitError, ParameterWarning
from gpu_als.models import (
    AlternatingLeastSquares,
    ExplicitALS,
    als_step,
    calculate_loss,
    factorize,
    load,
    loss_and_gradient,
)
from gpu_als.train.checkpoint import Checkpoint
from gpu_als.train.loop import StopTraining
from gpu_als.train.report import FitReport
from gpu_als.version import __version__

__all__ = [
    "AlternatingLeastSquares",
    "Checkpoint",
    "ExplicitALS",
    "FitReport",
    "GpuAlsError",
    "Interactions",
    "ModelFitError",
    "ParameterWarning",
    "StopTraining",
    "__version__",
    "als_step",
    "calculate_loss",
    "datasets",
    "errors",
    "evaluation",
    "factorize",
    "load",
    "loss_and_gradient",
    "metrics",
    "read_interactions",
    "solvers",
]
