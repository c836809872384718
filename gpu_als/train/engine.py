"""Where half-sweeps run: what the training loop asks of it, and the engine of this process.

The loop sees no arrays but those of finished fits. An engine has the data and, from when a fit
starts, the factors; it solves one side at a time and reports how that went.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from gpu_als.backends import BackendChoice
from gpu_als.core.backend import Backend
from gpu_als.core.basis import SideRidge
from gpu_als.core.half_sweep import hold_fixed, solve_rows
from gpu_als.core.memory import FitShape, plan_device
from gpu_als.core.objectives import Objective, row_problem
from gpu_als.core.ops import prefetch
from gpu_als.core.problem import Array, LoadedProblem
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats
from gpu_als.train.row_blocks import RowBlocks

__all__ = [
    "SIDES",
    "Engine",
    "Factors",
    "LocalEngine",
    "Model",
    "Side",
    "Solvers",
    "Sweeps",
    "plan_blocks",
    "side_ridge",
]

Factors = tuple[Any, Any]
Solvers = tuple[Solver, Solver]

SIDES = "users", "items"

HOST_BYTES = 1 << 28
"""Of problems that are kept for each side where rows are read from disk: those of 256 MiB are made
once in a fit, the others in every half-sweep. Of rows in memory all are kept, which at most doubles
what the rows take."""


@dataclass
class Model:
    """Factors: those a fit begins with, on the host, and those it ends with, on the device.

    Attributes
    ----------
    user_factors : array, shape (n_users, k)
    item_factors : array, shape (n_items, k)
    bias : bool
        The last column of each holds the biases: factors whose partner is fixed at 1.
    """

    user_factors: Array
    item_factors: Array
    bias: bool = False

    @property
    def factors(self) -> tuple[Array, Array]:
        """Those of the users and of the items."""
        return self.user_factors, self.item_factors

    @factors.setter
    def factors(self, both: Factors) -> None:
        self.user_factors, self.item_factors = both


class Sweeps(Protocol):
    """A fit under way: the factors of both sides, and the half-sweeps that change them.

    A *state* is both sides' factors, wherever and however the engine keeps them.
    """

    def half_sweep(self, side: int) -> HalfSweepStats:
        """Solve every row of side 0, the users, or 1, the items, with the other side held."""
        ...

    def state(self) -> Any:
        """Return the present state, which the next half-sweep may change in place."""
        ...

    def copy(self, state: Any) -> Any:
        """Return a state that no half-sweep changes."""
        ...

    def from_host(self, factors: Factors) -> Any:
        """Return NumPy arrays as a state."""
        ...

    def arrays(self, state: Any) -> Factors:
        """Return a state as a model holds it: arrays of a device, not copied if they are that."""
        ...

    def to_host(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return a state as NumPy arrays."""
        ...

    def workspace_bytes(self) -> int:
        """Return the largest workspace so far of any one backend, in bytes."""
        ...


class Engine(Protocol):
    """Where half-sweeps run, with the data they run on."""

    @property
    def device(self) -> str:
        """The devices in words, for reports."""
        ...

    def start(self, model: Model, solvers: Solvers, copies: int) -> AbstractContextManager[Sweeps]:
        """Begin a fit from the factors of ``model``.

        Parameters
        ----------
        model : Model
            Its factors are finite and on the host.
        solvers : pair
            For users and for items.
        copies : int
            How often the factors will be there at the same time.
        """
        ...


class Side:
    """One side of a fit, or consecutive rows of one, whose problems are made once and kept.

    They stay on the device, or pass through it in every half-sweep, one being solved while the next
    is on its way. Another process gets a side without them.

    Parameters
    ----------
    name : str
        "users" or "items".
    objective : Objective
    rows : RowBlocks
    n_factors : int
        Columns of the factors, biases included.
    ridge : SideRidge
        Of all rows of the side, whichever of them these are: a row's solution, to the last bit,
        does not depend on those that are solved beside it.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        rows: RowBlocks,
        n_factors: int,
        ridge: SideRidge,
    ) -> None:
        self.name, self.objective, self.rows = name, objective, rows
        self.n_factors, self.ridge = n_factors, ridge
        self._kept: dict[int, Any] | None = None
        self._backend: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was made for this process."""
        return vars(self) | {"_kept": None, "_backend": None}

    @property
    def is_loaded(self) -> bool:
        """Whether :meth:`load` was called in this process."""
        return self._kept is not None

    def load(self, backend: Backend, cut: tuple[int, int, int] | None) -> None:
        """Make the problems that stay where they are solved.

        Parameters
        ----------
        backend : Backend
        cut : (int, int, int) or None
            How blocks are cut that pass through the device, from :func:`plan_blocks`.
        """
        self._backend, self._streamed = backend, cut is not None
        if cut is not None:
            self.rows = self.rows.partition(*cut)
        self._kept = {}
        in_memory = self.rows.nbytes > 0 or not (
            self._streamed or backend.available_memory() is None
        )
        self._free_bytes = float("inf") if in_memory else HOST_BYTES
        if in_memory and not self._streamed:
            for number in range(self.n_blocks):
                self._problem(number)

    @property
    def has_base(self) -> bool:
        """Whether the systems of rows share a base."""
        return self.objective.base_weight != 0 or self.objective.prior(self.name).base is not None

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.rows.bounds) - 1

    def half_sweep(
        self, solver: Solver, fixed: Array, solved: Array, *, bias: bool
    ) -> HalfSweepStats:
        """Solve these rows in place.

        Parameters
        ----------
        solver : Solver
        fixed : array, shape (n_fixed, k)
            All factors of the other side.
        solved : array, shape (n_rows, k)
        bias : bool
            The last column of the factors holds biases.
        """
        backend, stats = self._backend, HalfSweepStats()
        held = hold_fixed(
            backend, self.objective, self.name, fixed, self.ridge, rotate=solver.rotates, bias=bias
        )
        first = self.rows.bounds[0]
        for (begin, end), problem in zip(pairwise(self.rows.bounds), self.problems(), strict=True):
            place = solved[begin - first : end - first]
            own = held.of_rows(slice(begin, end))
            stats.add(solve_rows(backend, problem, own, place, solver))
        return stats

    def problems(self) -> Iterator[LoadedProblem]:
        """Yield the problem of each block on the device."""
        assert self._kept is not None
        makers = [partial(self._problem, number) for number in range(self.n_blocks)]
        if self._streamed:
            yield from self._backend.prefetch(makers)
        elif len(self._kept) == len(makers):
            yield from (make() for make in makers)
        else:
            yield from prefetch(makers)

    def _problem(self, number: int) -> Any:
        """Return a block's problem where it is kept: on the device, or on the host if streamed."""
        assert self._kept is not None
        if number in self._kept:
            return self._kept[number]
        backend = self._backend
        how = self.n_factors, backend.batch_elements, self.name
        problem: Any = row_problem(self.objective, self.rows.block(number), *how)
        if not self._streamed:
            problem = backend.load(problem)
        size = _owned_bytes(problem)
        if size <= self._free_bytes:
            self._kept[number] = problem
            self._free_bytes -= size
        return problem


def _owned_bytes(problem: Any) -> int:
    """Return the bytes that a problem takes besides the rows that it was made of."""
    parts = [problem, *(part for part in vars(problem).values() if hasattr(part, "__dict__"))]
    arrays = (each for part in parts for each in vars(part).values())
    return sum(each.nbytes for each in arrays if isinstance(each, np.ndarray) and each.base is None)


def plan_blocks(
    backend: Backend,
    sides: Sequence[Side],
    shape: tuple[int, int],
    dtype: np.dtype,
    *,
    bias: bool,
    copies: int,
) -> tuple[int, int, int] | None:
    """Return how to cut sides into blocks that the device has room for.

    Parameters
    ----------
    backend : Backend
    sides : sequence of Side
    shape : (int, int)
        Users and items whose factors will be on the device.
    dtype : dtype
        Of the factors.
    bias : bool
    copies : int
        How often the factors will be there at the same time.

    Returns
    -------
    (int, int, int) or None
        Arguments of :meth:`RowBlocks.partition`; None where all data stay on the device, or the
        device is the host.
    """
    memory = backend.available_memory()
    if memory is None:
        return None
    counts = [side.rows.counts() for side in sides]
    objective = sides[0].objective
    needs = FitShape(
        *shape,
        max(int(each.sum()) for each in counts),
        sides[0].n_factors - bias,
        dtype.itemsize,
        max(int(each.max(initial=0)) for each in counts),
        copies,
        bias,
        base=any(side.has_base for side in sides),
        weighted=objective.weighted or any(side.rows.weighted for side in sides),
        ones=float(objective.rhs_only),
        half=backend.stores_half,
    )
    plan = plan_device(needs, *memory)
    if plan.part_bytes is None:
        return None
    return plan.part_bytes, needs.entry_bytes, needs.row_bytes


class LocalEngine:
    """Half-sweeps in this process, on one device.

    Parameters
    ----------
    both : pair of RowBlocks
        Those of the users and of the items.
    objective : Objective
    n_factors : int
        Columns of the factors, biases included.
    choice : BackendChoice
    """

    def __init__(
        self,
        both: tuple[RowBlocks, RowBlocks],
        objective: Objective,
        n_factors: int,
        choice: BackendChoice,
    ) -> None:
        self.backend = choice.get()
        self.sides = [
            Side(name, objective, rows, n_factors, side_ridge(objective, rows, name))
            for name, rows in zip(SIDES, both, strict=True)
        ]

    @property
    def device(self) -> str:
        """The device in words, for reports."""
        return self.backend.device

    @contextmanager
    def start(self, model: Model, solvers: Solvers, copies: int) -> Iterator[Sweeps]:
        """Load both sides and the factors of ``model``, and begin a fit from them."""
        backend, (users, items) = self.backend, model.factors
        shape = len(users), len(items)
        cut = plan_blocks(backend, self.sides, shape, users.dtype, bias=model.bias, copies=copies)
        with backend.session():
            sweeps = _LocalSweeps(backend, self.sides, model, solvers)
            for side in self.sides:
                side.load(backend, cut)
            yield sweeps


def side_ridge(objective: Objective, rows: RowBlocks, name: str) -> SideRidge:
    """Return what a half-sweep needs to know of the ridges of a whole side."""
    return SideRidge.of(objective.ridge(rows.counts(), rows.n_fixed, name))


class _LocalSweeps:
    def __init__(
        self, backend: Backend, sides: Sequence[Side], model: Model, solvers: Solvers
    ) -> None:
        self._backend, self._sides = backend, sides
        self._solvers, self._bias = solvers, model.bias
        self._factors = self.from_host(model.factors)

    def half_sweep(self, side: int) -> HalfSweepStats:
        solved, fixed = self._factors[side], self._factors[1 - side]
        return self._sides[side].half_sweep(self._solvers[side], fixed, solved, bias=self._bias)

    def state(self) -> Factors:
        return self._factors

    def copy(self, state: Factors) -> Factors:
        return state[0].copy(), state[1].copy()

    def from_host(self, factors: Factors) -> Factors:
        return self._backend.from_host(factors[0]), self._backend.from_host(factors[1])

    def arrays(self, state: Factors) -> Factors:
        return state

    def to_host(self, state: Factors) -> tuple[np.ndarray, np.ndarray]:
        return self._backend.to_host(state[0]), self._backend.to_host(state[1])

    def workspace_bytes(self) -> int:
        return self._backend.workspace_bytes()
