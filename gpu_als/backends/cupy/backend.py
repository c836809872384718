"""The CuPy backend: the shared row solver on a CUDA GPU.

Rows are solved by kernels of our own (row_kernels.py) where they fit. The others take the general
path, one batch after another: gather, batched matrix products for the Grams, cuSOLVER for systems.
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

from gpu_als.backends.cupy.arrays import Matrix, rowwise_matmul
from gpu_als.backends.cupy.device import current_device, device_needed, load_libraries
from gpu_als.backends.cupy.launch import SEGMENT, DeviceLimits
from gpu_als.backends.cupy.nvrtc import Kernels, Macros
from gpu_als.backends.cupy.rhs_only import KERNELS, load_rhs_only
from gpu_als.backends.cupy.row_kernels import RowKernels, StreamPool
from gpu_als.backends.cupy.top_k import FusedTopK
from gpu_als.core.basis import FixedSide
from gpu_als.core.memory import DEVICE_BLOCK, batch_bytes, device_batch_elements
from gpu_als.core.ops import R, T, blocked_gram, blocked_transform, prefetch
from gpu_als.core.packing import pack_rows
from gpu_als.core.problem import Array, LoadedProblem, RowProblem, load_problem
from gpu_als.core.solvers import Cholesky, ConjugateGradient, Solver
from gpu_als.core.stats import HalfSweepStats
from gpu_als.errors import BackendError

__all__ = ["CupyBackend"]

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
    row_kernels : RowKernels
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
            streams = StreamPool(cupy)
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
        self.row_kernels = RowKernels(
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
    def session(self, *, threads: bool = True) -> Iterator[None]:
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
        """Apply the function to one task after another; each of them fills the device."""
        return map(function, tasks)

    def workspace(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised array; CuPy's memory pool recycles them."""
        array = self.xp.empty(shape, dtype)
        self._held[name] = max(self._held.get(name, 0), array.nbytes)
        return array

    def take_rows(self, matrix: Array, indices: Array, out: Array) -> None:
        """Gather rows into ``out``."""
        self.xp.take(matrix, indices, axis=0, out=out)

    def rowwise_matmul(self, rows: Array, matrix: Array) -> Array:
        """Multiply in blocks of one shape."""
        return rowwise_matmul(self.xp, rows, matrix)

    def gram(self, factors: Array) -> Array:
        """Add up block by block."""
        return blocked_gram(self, factors)

    def transform(self, factors: Array, matrix: Array) -> Array:
        """Multiply block by block."""
        return blocked_transform(self, factors, matrix)

    def cholesky_solve(self, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """Factor and substitute by cuSOLVER."""
        from gpu_als.backends.cupy.cusolver import cholesky_solve

        return cholesky_solve(lhs, rhs)

    def solve_fused(
        self, problem: LoadedProblem, held: FixedSide, solved: Array, solver: Solver
    ) -> tuple[HalfSweepStats, LoadedProblem]:
        """Solve rows by kernels of our own, where there are some that take them."""
        if self.kernels.usable:
            with self.kernels.or_general_path():
                return self.row_kernels.solve(problem, held, solved, solver)
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
            plan = self.row_kernels.plan_rows(packing, width, solver)
            kernels |= {(launch.kernel, launch.macros) for launch in plan.launches}
        self.kernels.prepare(kernels)
        return len(kernels)

    def available_memory(self) -> tuple[int, int]:
        """Return the bytes that are free, CuPy's pool counted in, and those that batches use."""
        free = self.xp.cuda.runtime.memGetInfo()[0]
        free += self.xp.get_default_memory_pool().free_bytes()
        return free, batch_bytes(self.batch_elements)

    def load(self, problem: RowProblem) -> LoadedProblem:
        """Return the problem with its arrays on the device, its weights worked out there."""
        loaded = self._load(problem)
        if problem.rows.values.nbytes >= _LARGE:
            # Copies go through page-locked memory, of which CuPy keeps up to twice their size;
            # it sees which ones have ended when it is asked for more.
            self.xp.cuda.get_current_stream().synchronize()
            self.xp.cuda.alloc_pinned_memory(1)
            self.xp.get_default_pinned_memory_pool().free_all_blocks()
        return loaded

    def _load(self, problem: RowProblem) -> LoadedProblem:
        rows = problem.rows
        if rows.n_fixed < 1 << 31:  # SciPy widens them where there are many entries
            narrow = rows.indices.astype(np.int32, copy=False)
            problem = replace(problem, rows=replace(rows, indices=narrow))
        rhs_only = problem.rhs_only
        if sp.issparse(rhs_only):
            rhs_only = load_rhs_only(self.xp, self.kernels, rhs_only)
        elif rhs_only is not None:  # a dense X
            rhs_only = self.xp.asarray(rhs_only)
        return load_problem(self.xp, self.xp.asarray, problem, rhs_only)

    def prefetch(self, makers: Iterable[Callable[[], RowProblem]]) -> Iterator[LoadedProblem]:
        """Yield problems on the device; copies run ahead on a stream of their own."""
        cuda, copying = self.xp.cuda, self._copying
        # When what is copied next may overwrite a problem's memory: first that of an earlier call.
        used: deque[Any] = deque([cuda.get_current_stream().record()])

        def loader(make: Callable[[], RowProblem]) -> Callable[[], tuple[LoadedProblem, Any]]:
            def load() -> tuple[LoadedProblem, Any]:
                with self.session(), copying:
                    if used:
                        copying.wait_event(used.popleft())
                    problem = self._load(make())
                    return problem, copying.record()

            return load

        for problem, ready in prefetch(map(loader, makers)):
            cuda.get_current_stream().wait_event(ready)
            yield problem
            del problem
            used.append(cuda.get_current_stream().record())

    def top_k(
        self,
        users: Array,
        items: Array,
        n_best: int,
        liked: sp.csr_matrix | None,
        filter_items: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Rank by a kernel of our own, as far as one serves."""
        if self.kernels.usable:
            with self.kernels.or_general_path():
                return self._top_k(users, items, n_best, liked, filter_items)
        return None

    def from_host(self, array: Any) -> Array:
        """Return an array on the device; what is there already is not copied."""
        return array.array if isinstance(array, Matrix) else self.xp.asarray(array)

    def to_device(self, factors: Any) -> Matrix:
        """Return factors as a model keeps them on the GPU."""
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
