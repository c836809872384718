"""How one row's linear system is solved: small frozen option objects that say what they need."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_als.errors import InputError

__all__ = ["Cholesky", "ConjugateGradient", "NonNegative", "Solver", "as_solver"]


@dataclass(frozen=True)
class Cholesky:
    """Exact solution by Cholesky factorisation, in the cheaper of the primal and the dual form.

    A row with ``n`` observations costs ``n k^2 + k^3/3`` in the primal ``(k, k)`` form and
    ``n^2 k + n^3/3`` in the dual ``(n, n)`` form; the dual is taken for ``n < k``, where it is
    also the better conditioned of the two.
    """


@dataclass(frozen=True)
class ConjugateGradient:
    """Approximate solution by a few conjugate-gradient steps from the row's former value.

    Parameters
    ----------
    steps : int
        Number of steps per row and half-sweep.

    References
    ----------
    Takács, Pilászy, Tikk: Applications of the conjugate gradient method for implicit feedback
    collaborative filtering, RecSys 2011.
    """

    steps: int = 3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"cg_steps must be at least 1, not {self.steps}")


@dataclass(frozen=True)
class NonNegative:
    """Exact solution under ``x >= 0`` by block principal pivoting.

    Parameters
    ----------
    free_columns : int
        The last ``free_columns`` columns (a learned bias, for instance) stay unconstrained.

    References
    ----------
    Kim, Park: Fast nonnegative matrix factorization: an active-set-like method and comparisons,
    SIAM J. Sci. Comput. 33 (2011).
    """

    free_columns: int = 0


Cholesky.rotates = ConjugateGradient.rotates = True  # type: ignore
NonNegative.rotates = False  # type: ignore
Solver = Cholesky | ConjugateGradient | NonNegative

_NAMES: dict[str, Solver] = {"auto": Cholesky(), "cholesky": Cholesky(), "cg": ConjugateGradient()}


def as_solver(solver: str | Solver) -> Solver:
    """Return the solver that a name or an option object stands for."""
    if isinstance(solver, Cholesky | ConjugateGradient | NonNegative):
        return solver
    if not isinstance(solver, str) or solver not in _NAMES:
        raise InputError(
            f"solver must be one of {sorted(_NAMES)} or an object of gpu_als.solvers, "
            f"not {solver!r}"
        )
    return _NAMES[solver]
