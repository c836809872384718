"""What workers do: solve a range of rows with the other side held.

Workers exchange NumPy arrays in *pieces*, the factors of consecutive rows. A task never changes
what it was given, so that any worker can repeat it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from distributed import get_worker

from gpu_als.backends import BackendChoice
from gpu_als.core.backend import Backend
from gpu_als.core.basis import gram
from gpu_als.core.half_sweep import hold_fixed, solve_rows
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import LoadedProblem, SparseRows
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats
from gpu_als.dask.nccl import OnGpu, gather, gpu_for_nccl
from gpu_als.train.engine import Model, OnDevice, fit_to_device
from gpu_als.train.row_blocks import Rows, Side, WholeRows

__all__ = [
    "Device", "HowToSolve", "Part", "Piece", "Told", "describe_device", "first_piece", "gram_of",
    "is_there", "join", "make_part", "rows_of_piece", "solve", "solve_together", "sum_grams",
    "tell",
]  # fmt: skip

_one_at_a_time = threading.Lock()
"""A backend uses all threads or the device; a second task beside it would only take memory."""


class Piece(NamedTuple):
    """The factors of consecutive rows, and what their half-sweep tells.

    Attributes
    ----------
    rows : array, shape (n, k), or OnGpu
        On the host, or on the GPU of the worker that made it.
    gram : float64 array, shape (k, k), or None
        ``rows^T rows``, where the other side's half-sweep will want the sum of all.
    stats : HalfSweepStats
    workspace : int
        Bytes of the largest workspace that the worker has held so far.
    worker : str
        The address of the worker that made it.
    """

    rows: Any
    gram: np.ndarray | None
    stats: HalfSweepStats
    workspace: int
    worker: str


@dataclass(frozen=True)
class HowToSolve:
    """What stays the same for one side during a fit.

    Attributes
    ----------
    solver : Solver
    bias : bool
        The last column of the factors holds biases.
    backend : BackendChoice
        With the number of threads that a worker has, where it is 0.
    wants_gram : bool
        The other side's half-sweep has a base.
    """

    solver: Solver
    bias: bool
    backend: BackendChoice
    wants_gram: bool

    def get_backend(self) -> Backend:
        """Return the backend of the worker that this runs on."""
        return _backend_here(self.backend)


class Part:
    """Consecutive rows of one side, kept by a worker and ready to be solved any number of times.

    Parameters
    ----------
    side : Side
        With these rows only; its bounds may count from the first row of all.
    shape : (int, int)
        Users and items in all.
    """

    def __init__(self, side: Side, shape: tuple[int, int]) -> None:
        self.side, self.shape = side, shape
        self._on_device: OnDevice | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lies on a device."""
        return vars(self) | {"_on_device": None}

    def __sizeof__(self) -> int:
        """Return the bytes of rows in memory: Dask asks before it moves or spills something."""
        rows = self.side.rows.rows if isinstance(self.side.rows, WholeRows) else None
        arrays = vars(rows).values() if isinstance(rows, SparseRows) else ()
        held = sum(each.nbytes for each in arrays if isinstance(each, np.ndarray))
        return object.__sizeof__(self) + held

    def problems(self, backend: Backend, dtype: np.dtype) -> Iterator[tuple[slice, LoadedProblem]]:
        """Yield the rows' problems on the device; places count from the first of these rows."""
        if self._on_device is None:
            users, items = (
                np.broadcast_to(dtype.type(0), (rows, self.side.n_factors)) for rows in self.shape
            )
            empty = Model(users, items)
            (side, _), stay = fit_to_device(backend, (self.side, self.side), empty, 1)
            self._on_device = OnDevice(backend, side, stay=stay)
        first = self.side.rows.bounds[0]
        for place, problem in self._on_device:
            yield slice(place.start - first, place.stop - first), problem


def make_part(
    rows: Rows,
    name: str,
    objective: Objective,
    n_factors: int,
    choice: BackendChoice,
    shape: tuple[int, int],
) -> Part:
    """Return rows of the side of that name, ready to be solved on this worker."""
    elements = _backend_here(choice).batch_elements
    return Part(Side(name, objective, rows, n_factors, elements), shape)


def is_there(part: Part) -> bool:
    """Tell that a worker has made a part, which itself need not travel for it."""
    return True


def first_piece(rows: np.ndarray, how: HowToSolve, on_gpu: bool = False) -> Piece:
    """Return a piece of the factors that a fit begins with."""
    backend = how.get_backend()
    with backend.session():
        held = backend.from_host(rows) if on_gpu or how.wants_gram else None
        own = _gram(backend, held, how)
    return Piece(OnGpu(held) if on_gpu else rows, own, HalfSweepStats(), 0, get_worker().address)


def solve(
    part: Part,
    former: Piece,
    fixed: Sequence[Piece],
    fixed_gram: np.ndarray | None,
    how: HowToSolve,
) -> Piece:
    """Run a half-sweep over the rows of one part.

    Parameters
    ----------
    part : Part
    former : Piece
        Its present factors: what iterative solvers begin with, and what singular rows keep.
    fixed : sequence of Piece
        All of the other side, in order.
    fixed_gram : float64 array, shape (k, k), or None
        ``F^T F`` of the other side, where the half-sweep has a base.
    how : HowToSolve
    """
    backend = how.get_backend()
    with _one_at_a_time, backend.session():
        held = backend.from_host(join([piece.rows for piece in fixed]))
        solved = backend.from_host(former.rows.copy())
        piece = _solve(backend, part, solved, held, fixed_gram, how)
        return piece._replace(rows=backend.to_host(solved))


def solve_together(
    part: Part,
    former: Piece,
    own: Piece,
    fixed_gram: np.ndarray | None,
    how: HowToSolve,
    token: str,
    bounds: Sequence[int],
) -> Piece:
    """Do what :func:`solve` does while all members of a group do it, with no way through hosts.

    Parameters
    ----------
    own : Piece
        What this worker has of the other side, on its GPU as the former factors are.
    token, bounds
        As :func:`~gpu_als.dask.nccl.gather` takes them.
    """
    backend = how.get_backend()
    with _one_at_a_time, backend.session():
        held = gather(token, own.rows.array, bounds)
        solved = former.rows.array.copy()
        piece = _solve(backend, part, solved, held, fixed_gram, how)
        return piece._replace(rows=OnGpu(solved))


def _solve(
    backend: Backend,
    part: Part,
    solved: Any,
    held: Any,
    fixed_gram: np.ndarray | None,
    how: HowToSolve,
) -> Piece:
    """Solve in place; return the piece, in which the rows stand as they are."""
    side = part.side
    fixed = hold_fixed(
        backend, side.objective, side.name, held, side.ridge(),
        rotate=how.solver.rotates, bias=how.bias,
        known_gram=None if fixed_gram is None else backend.from_host(fixed_gram),
    )  # fmt: skip
    stats = HalfSweepStats()
    for place, problem in part.problems(backend, solved.dtype):
        stats.add(solve_rows(backend, problem, fixed.of_rows(place), solved[place], how.solver))
    own = _gram(backend, solved, how)
    return Piece(solved, own, stats, backend.workspace_bytes(), get_worker().address)


def rows_of_piece(piece: Piece) -> np.ndarray:
    """Return on the host the factors of a piece that is on a GPU."""
    return piece.rows.to_host()


class Told(NamedTuple):
    """What the client is told of a piece.

    Attributes
    ----------
    stats : HalfSweepStats
    nbytes : int
        Of the factors.
    worker : str
    workspace : int
    """

    stats: HalfSweepStats
    nbytes: int
    worker: str
    workspace: int


def tell(piece: Piece) -> Told:
    """Describe a piece, which itself need not travel for it."""
    return Told(piece.stats, piece.rows.nbytes, piece.worker, piece.workspace)


def gram_of(piece: Piece) -> np.ndarray | None:
    """Return a piece's Gram, for which the piece itself need not travel."""
    return piece.gram


def sum_grams(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of Grams, added in the order of the rows."""
    total = np.zeros_like(pieces[0])
    for each in pieces:
        total += each
    return total


def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return pieces as one array."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _gram(backend: Backend, rows: Any, how: HowToSolve) -> np.ndarray | None:
    return backend.to_host(gram(backend, rows)) if how.wants_gram else None


class Device(NamedTuple):
    """What a worker solves rows on.

    Attributes
    ----------
    worker : str
    name : str
    gpu : str or None
        See :func:`gpu_als.dask.nccl.gpu_for_nccl`.
    """

    worker: str
    name: str
    gpu: str | None


def describe_device(choice: BackendChoice) -> Device:
    """Return the device of this worker."""
    backend = _backend_here(choice)
    return Device(get_worker().address, backend.device, gpu_for_nccl(backend))


def _backend_here(choice: BackendChoice) -> Backend:
    threads = choice.num_threads or get_worker().state.nthreads
    return choice._replace(num_threads=threads).get()
