"""The CuPy backend: the shared row solver on a CUDA GPU.

Rows are solved by kernels of our own (fused.py) where they fit. The others take the general path,
one batch after another: gather, batched matrix products for the Grams, cuSOLVER for the systems.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.ahead import one_ahead
from gpu_als.backends.cupy.compile import Kernels, Macros
from gpu_als.backends.cupy.device import current_device, device_needed, load_libraries
from gpu_als.backends.cupy.fused import DeviceProblem, Fused, SideBySide
from gpu_als.backends.cupy.launch import SEGMENT, DeviceLimits
from gpu_als.backends.cupy.linear import KERNELS, load_linear
from gpu_als.backends.cupy.matrix import Matrix
from gpu_als.backends.cupy.multiply import multiply_each
from gpu_als.backends.cupy.ranking import FusedTopK
from gpu_als.backends.frame import Frame
from gpu_als.backends.ops import R, T
from gpu_als.backends.stats import HalfSweepStats
from gpu_als.data.packing import pack_rows
from gpu_als.errors import BackendError
from gpu_als.memory.device_plan import batch_bytes, device_batch_elements
from gpu_als.memory.fit_shape import DEVICE_BLOCK
from gpu_als.row_problem import RowProblem, SparseRows
from gpu_als.solvers import Cholesky, ConjugateGradient, Solver

__all__ = ["CupyBackend"]

Array = Any

_LARGE = 1 << 26
"""Bytes of values, from which on memory that copies went through is given back."""
_made: dict[tuple[int, str], CupyBackend] = {}


class CupyBackend:
    """The current CUDA device.

    Parameters
    ----------
    precision : {"float32", "tf32x3", "float16"}
        How float32 factors are multiplied; see :func:`gpu_als.backends.get_backend`.
    fused : bool
        Use kernels of our own; without them every row takes the general path.

    Attributes
    ----------
    kernels : Kernels
        Ours; not usable without ``fused``, and from the first that fails.
    fused : Fused
        What launches those of half-sweeps.
    limits : DeviceLimits

    Raises
    ------
    BackendError
        CuPy is not installed or does not work, or there is no GPU it can use.
    """

    name = "cupy"
    block_elements = DEVICE_BLOCK

    def __init__(self, precision: str = "float32", *, fused: bool = True) -> None:
        cupy, self._number = current_device()
        with device_needed():
            properties = cupy.cuda.runtime.getDeviceProperties(self._number)
            # The first that needs the device itself; each backend keeps its streams, since what
            # CuPy's pool holds for a stream serves no other.
            self._copying = cupy.cuda.Stream(non_blocking=True)
            streams = SideBySide(cupy)
        self.xp: Any = cupy
        self._failures: tuple[type[Exception], ...] = ()
        with self.session():
            self._failures = load_libraries(cupy)
        self.device = properties["name"].decode()
        self.batch_elements = device_batch_elements(properties["totalGlobalMem"])
        self._held: dict[str, int] = {}
        architecture = 10 * properties["major"] + properties["minor"]
        self.limits = DeviceLimits(
            architecture,
            properties["sharedMemPerBlockOptin"],
            properties["sharedMemPerMultiprocessor"],
        )
        self.kernels = Kernels(cupy, architecture, usable=fused)
        self._top_k = FusedTopK(
            cupy,
            self.limits,
            properties["multiProcessorCount"],
            lambda file, function, macros: self.kernels.get(file, macros, function),
        )
        self.stores_half = precision == "float16"
        self.fused = Fused(
            cupy,
            self.limits,
            self.kernels,
            streams,
            self.batch_elements,
            tensor_cores=precision == "tf32x3",
            stored_half=self.stores_half,
        )

    @classmethod
    def for_current_device(cls, precision: str) -> CupyBackend:
        """Return the one backend of the current device, which keeps its compiled kernels."""
        key = current_device()[1], precision
        if key not in _made:
            _made[key] = cls(precision)
        return _made[key]

    @contextmanager
    def session(self) -> Iterator[None]:
        """Work on the device that was current when the backend was made.

        Raises
        ------
        BackendError
            The device has no memory left, or failed at something.
        """
        try:
            with self.xp.cuda.Device(self._number):
                yield
        except self.xp.cuda.memory.OutOfMemoryError as error:
            raise BackendError(
                f"the GPU has no memory left ({error}); free what other programs hold, use "
                "fewer factors or less data, or backend='numpy' (use_gpu=False)"
            ) from error
        except self._failures as error:
            raise BackendError(
                f"the GPU failed ({type(error).__name__}: {error}), after which a process may not "
                "be able to use it; start it again, and if it fails there too, use backend='numpy' "
                "(use_gpu=False)"
            ) from error

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`gpu_als.backends.ops.Ops`; one after another."""
        return map(function, tasks)

    def workspace(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """See :class:`gpu_als.backends.ops.Ops`; CuPy's memory pool recycles them."""
        array = self.xp.empty(shape, dtype)
        self._held[name] = max(self._held.get(name, 0), array.nbytes)
        return array

    def take_rows(self, matrix: Array, indices: Array, out: Array) -> None:
        """See :class:`gpu_als.backends.ops.Ops`."""
        self.xp.take(matrix, indices, axis=0, out=out)

    def multiply_each(self, rows: Array, matrix: Array) -> Array:
        """See :class:`gpu_als.backends.ops.Ops`."""
        return multiply_each(self.xp, rows, matrix)

    def cholesky_solve(self, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """See :class:`gpu_als.backends.ops.Ops`."""
        from gpu_als.backends.cupy.cusolver import cholesky_solve

        return cholesky_solve(lhs, rhs)

    def solve_fused(
        self, problem: RowProblem, frame: Frame, solved: Array, solver: Solver
    ) -> tuple[HalfSweepStats, RowProblem]:
        """See :class:`gpu_als.backends.ops.Ops`."""
        if self.kernels.usable and isinstance(problem, DeviceProblem):
            with self.kernels.or_general_path():
                return self.fused.solve(problem, frame, solved, solver)
        return HalfSweepStats(), problem

    def compile_kernels(self, n_factors: int) -> int:
        """Compile every kernel that fits with ``n_factors`` may launch; return how many.

        Those of exact fits and of conjugate gradients; also with a bias, which is one factor more.
        CuPy keeps them on disk, where later processes find them.
        """
        if not self.kernels.usable:
            return 0
        kernels: set[tuple[str, Macros]] = set(KERNELS)
        for width, solver in (
            (n_factors, Cholesky()),
            (n_factors, ConjugateGradient()),
            (n_factors + 1, Cholesky()),
        ):
            packing = pack_rows(np.arange(2 * SEGMENT + 2), width, 1 << 40)
            plan = self.fused.plan_rows(packing, width, solver)
            kernels |= {(launch.kernel, launch.macros) for launch in plan.launches}
        self.kernels.prepare(kernels)
        return len(kernels)

    def room(self) -> tuple[int, int]:
        """See :class:`gpu_als.backends.ops.Backend`."""
        free = self.xp.cuda.runtime.memGetInfo()[0]
        free += self.xp.get_default_memory_pool().free_bytes()
        return free, batch_bytes(self.batch_elements)

    def load(self, problem: RowProblem) -> DeviceProblem:
        """Return the problem with its arrays on the device.

        The entries' weights are worked out once: values become ``tau``, weights the roots with
        their signs.
        """
        loaded = self._load(problem)
        if problem.rows.values.nbytes >= _LARGE:
            # Copies go through page-locked memory, of which CuPy keeps up to twice their size;
            # it sees which ones have ended when it is asked for more.
            self.xp.cuda.get_current_stream().synchronize()
            self.xp.cuda.alloc_pinned_memory(1)
            self.xp.get_default_pinned_memory_pool().free_all_blocks()
        return loaded

    def _load(self, problem: RowProblem) -> DeviceProblem:
        rows, packing, move = problem.rows, problem.packing, self.xp.asarray
        root, sign, tau = None, None, move(rows.values)
        if len(tau):
            weights = None if rows.weights is None else move(rows.weights)
            root, sign, tau = problem.weigh(self.xp, tau, weights)
        if root is not None and sign is not None:
            root = root * sign
        indices = rows.indices
        if rows.n_fixed < 1 << 31:  # SciPy widens them where there are many entries
            indices = indices.astype(np.int32, copy=False)
        without_entries = replace(
            rows, indices=np.zeros(0, np.int32), values=np.zeros(0, rows.values.dtype), weights=None
        )
        return DeviceProblem(
            rows=SparseRows(move(rows.indptr), move(indices), tau, root, rows.n_fixed),
            packing=replace(packing, order=move(packing.order)),
            weigh=_stored if sign is None else _stored_with_signs,
            base_weight=problem.base_weight,
            ridge=problem.ridge if isinstance(problem.ridge, float) else move(problem.ridge),
            linear=self._load_linear(problem.linear),
            squared_loss=problem.squared_loss,
            offset=problem.offset,
            host=replace(problem, rows=without_entries, linear=None),
            places=move(np.append(packing.order, packing.long_rows).astype(np.int64)),
        )

    def load_ahead(self, makers: Iterable[Callable[[], RowProblem]]) -> Iterator[DeviceProblem]:
        """See :class:`gpu_als.backends.ops.Backend`; copies run on a stream of their own."""
        cuda, copying = self.xp.cuda, self._copying
        # When what is copied next may overwrite a problem's memory: first that of an earlier call.
        used: deque[Any] = deque([cuda.get_current_stream().record()])

        def loader(make: Callable[[], RowProblem]) -> Callable[[], tuple[DeviceProblem, Any]]:
            def load() -> tuple[DeviceProblem, Any]:
                with self.session(), copying:
                    if used:
                        copying.wait_event(used.popleft())
                    problem = self._load(make())
                    return problem, copying.record()

            return load

        for problem, ready in one_ahead(map(loader, makers)):
            cuda.get_current_stream().wait_event(ready)
            yield problem
            del problem
            used.append(cuda.get_current_stream().record())

    def _load_linear(self, linear: Any) -> Any:
        if linear is None:
            return None
        if not sp.issparse(linear):  # a dense X
            return self.xp.asarray(linear)
        return load_linear(self.xp, self.kernels, linear)

    def top_k(
        self,
        users: Array,
        items: Array,
        n_best: int,
        liked: sp.csr_matrix | None,
        filter_items: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """See :class:`gpu_als.backends.ops.Backend`."""
        if self.kernels.usable:
            with self.kernels.or_general_path():
                return self._top_k(users, items, n_best, liked, filter_items)
        return None

    def from_host(self, array: Any) -> Array:
        """See :class:`gpu_als.backends.ops.Backend`."""
        return array.array if isinstance(array, Matrix) else self.xp.asarray(array)

    def hold(self, factors: Any) -> Matrix:
        """See :class:`gpu_als.backends.ops.Backend`."""
        with self.session():
            return Matrix(self.from_host(factors))

    def to_host(self, array: Array) -> np.ndarray:
        """Return an array of the device as a NumPy array."""
        host: np.ndarray = self.xp.asnumpy(array)
        return host

    def nccl(self) -> Any:
        """Return CuPy's NCCL, or None where that library is missing or broken."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy's, where it is missing
            try:
                from cupy.cuda import nccl
            except (ImportError, OSError, RuntimeError):
                return None
        return nccl if nccl.available else None

    def workspace_bytes(self) -> int:
        """Return the largest workspace asked for so far."""
        return sum(self._held.values())


def _stored(xp: Any, values: Array, weights: Array | None) -> tuple[Any, Any, Array]:
    """Return weights that :meth:`CupyBackend.load` worked out, where none is negative."""
    return weights, None, values


def _stored_with_signs(xp: Any, values: Array, weights: Array) -> tuple[Any, Any, Array]:
    return xp.abs(weights), xp.sign(weights), values
