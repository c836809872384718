"""What workers do: solve a range of rows with the other side held.

Workers exchange NumPy arrays in blocks, the factors of consecutive rows. A task never changes what
it was given, so that any worker can repeat it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from dask.sizeof import sizeof
from distributed import get_worker

from gpu_als.backends import BackendChoice
from gpu_als.core.backend import Backend
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats
from gpu_als.dask.nccl import OnGpu, gather, gpu_for_nccl
from gpu_als.train.engine import Side, plan_blocks
from gpu_als.train.row_blocks import join

__all__ = [
    "Device", "FactorBlock", "HowToSolve", "Metadata", "describe_device", "first_block",
    "host_rows", "is_there", "make_side", "metadata", "solve", "solve_together",
]  # fmt: skip

_one_at_a_time = threading.Lock()
"""A backend uses all threads or the device; a second task beside it would only take memory."""


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
    shape : (int, int)
        Users and items in all.
    """

    solver: Solver
    bias: bool
    backend: BackendChoice
    shape: tuple[int, int]

    def get_backend(self) -> Backend:
        """Return the backend of the worker that this runs on."""
        return _backend_here(self.backend)


class FactorBlock(NamedTuple):
    """The factors of consecutive rows, and what is known of their half-sweep.

    Attributes
    ----------
    rows : array, shape (n, k), or OnGpu
        On the host, or on the GPU of the worker that made it.
    stats : HalfSweepStats
    workspace : int
        Bytes of the largest workspace that the worker has held so far.
    worker : str
        The address of the worker that made it.
    """

    rows: Any
    stats: HalfSweepStats
    workspace: int
    worker: str


class Metadata(NamedTuple):
    """What the client knows of a block of factors.

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


def metadata(block: FactorBlock) -> Metadata:
    """Describe a block, which itself need not travel for it."""
    return Metadata(block.stats, block.rows.nbytes, block.worker, block.workspace)


def make_side(*what: Any) -> Side:
    """Return rows of a side, of which this worker makes problems when it first solves them."""
    return Side(*what)


@sizeof.register(Side)
def _size_of_side(side: Side) -> int:
    """Return the bytes of rows in memory: Dask asks before it moves or spills something."""
    return object.__sizeof__(side) + side.rows.nbytes


def is_there(side: Side) -> bool:
    """Return once a worker has made a side, which itself need not travel for it."""
    return True


def first_block(rows: np.ndarray, how: HowToSolve, on_gpu: bool = False) -> FactorBlock:
    """Return a block of the factors that a fit begins with."""
    held: Any = rows
    if on_gpu:
        backend = how.get_backend()
        with backend.session():
            held = OnGpu(backend.from_host(rows))
    return FactorBlock(held, HalfSweepStats(), 0, get_worker().address)


def solve(
    side: Side, former: FactorBlock, fixed: Sequence[FactorBlock], how: HowToSolve
) -> FactorBlock:
    """Run a half-sweep over the rows that a worker has of one side.

    Parameters
    ----------
    side : Side
    former : FactorBlock
        Their present factors: what iterative solvers begin with, and what singular rows keep.
    fixed : sequence of FactorBlock
        All of the other side, in order.
    how : HowToSolve
    """
    backend = how.get_backend()
    with _one_at_a_time, backend.session():
        held = backend.from_host(join([block.rows for block in fixed]))
        solved = backend.from_host(former.rows.copy())
        block = _solve(backend, side, solved, held, how)
        return block._replace(rows=backend.to_host(solved))


def solve_together(
    side: Side,
    former: FactorBlock,
    own: FactorBlock,
    how: HowToSolve,
    token: str,
    bounds: Sequence[int],
) -> FactorBlock:
    """Do what :func:`solve` does while all members of a group do it, with no way through hosts.

    Parameters
    ----------
    own : FactorBlock
        What this worker has of the other side, on its GPU as the former factors are.
    token, bounds
        As :func:`~gpu_als.dask.nccl.gather` takes them.
    """
    backend = how.get_backend()
    with _one_at_a_time, backend.session():
        held = gather(token, own.rows.array, bounds)
        solved = former.rows.array.copy()
        block = _solve(backend, side, solved, held, how)
        return block._replace(rows=OnGpu(solved))


def _solve(backend: Backend, side: Side, solved: Any, held: Any, how: HowToSolve) -> FactorBlock:
    """Solve in place; return the block, in which the rows stand as they are."""
    if not side.is_loaded:
        cut = plan_blocks(backend, [side], how.shape, solved.dtype, bias=how.bias, copies=1)
        side.load(backend, cut)
    stats = side.half_sweep(how.solver, held, solved, bias=how.bias)
    return FactorBlock(solved, stats, backend.workspace_bytes(), get_worker().address)


def host_rows(block: FactorBlock) -> np.ndarray:
    """Return on the host the factors of a block that is on a GPU."""
    return block.rows.to_host()


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
