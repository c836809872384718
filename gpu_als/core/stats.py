"""What a half-sweep reports about the rows it solved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

__all__ = ["RESIDUAL_LIMIT", "HalfSweepStats"]

RESIDUAL_LIMIT = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-6}
"""An exact solve whose relative residual is larger than this is repeated in float64."""


@dataclass
class HalfSweepStats:
    """How the rows of one half-sweep were solved.

    Attributes
    ----------
    paths : Counter
        Number of rows by the way they went: "dual", "primal", "cg", "nnls", "long" (split into
        segments), "shared" (no system of their own), "rescued" (repeated in float64, counted
        besides their first way).
    singular : int
        Rows whose system is singular; they kept their former value.
    residual : float
        Largest ``|lhs z - rhs| / |rhs|`` of the exactly solved rows, in the coordinates of the
        half-sweep; under ``x >= 0`` that of the Karush-Kuhn-Tucker conditions.
    bound : float
        The objective is at most this far above the least that these rows could make it, up to
        rounding of the residuals: ``sum_u |lhs z - rhs|^2 / shift_u``. Infinite where nothing is
        proven: without a ridge, with negative weights, or after solves that are not exact.
    steps : Counter
        Number of rows by the conjugate-gradient steps that their exact solve took.
    objective : float
        The objective as far as the solved rows enter it: the loss over their entries, the
        shared base and their own ridge.
    penalty : float
        ``sum_u ridge_u |x_u|^2`` over the solved rows.
    launches : int
        Launches of kernels of our own, on a GPU.
    transferred : int
        Bytes of the fixed side that workers had to fetch from others, in a cluster.
    """

    paths: Counter[str] = field(default_factory=Counter)
    singular: int = 0
    residual: float = 0.0
    bound: float = 0.0
    steps: Counter[int] = field(default_factory=Counter)
    objective: float = 0.0
    penalty: float = 0.0
    launches: int = 0
    transferred: int = 0

    def add(self, other: HalfSweepStats) -> None:
        """Add the statistics of other rows."""
        self.paths.update(other.paths)
        self.singular += other.singular
        self.residual = max(self.residual, other.residual)
        self.bound += other.bound
        self.steps.update(other.steps)
        self.objective += other.objective
        self.penalty += other.penalty
        self.launches += other.launches
        self.transferred += other.transferred
