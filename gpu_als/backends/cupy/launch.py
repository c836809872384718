"""Which kernel solves which rows: a pure function from shapes and device limits to launches.

Nothing here touches a GPU, so plans can be printed and tested for any device anywhere. The rows of
one side are ordered by length (gpu_als/data/packing.py), and every launch takes a run of rows of
similar length. Three kernels share them:

    dual_warp    rows shorter than n_factors, up to 32 entries: one warp each
    dual_block   rows shorter than n_factors, up to 256 entries: one block each
    primal       all other rows: one block each; very long ones cut into segments (split)

Empty rows go the way of the shortest ones where these are in dual form. Rows for which the device's
shared memory is too small are left to the general path, and so are other empty rows. Plans depend
on the device only through its limits, and only in where rows go: the numbers a kernel computes for
a row depend on the row alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gpu_als.core.packing import Packing, Span
from gpu_als.core.solvers import Solver

__all__ = ["HALF_SWEEP", "SEGMENT", "DeviceLimits", "Launch", "Plan", "plan_half_sweep"]

HALF_SWEEP = np.dtype(
    [
        *[(name, np.uint64) for name in (
            "indptr", "indices", "root", "tau", "offset", "fixed", "eigenvalues", "ridge", "base",
            "b0", "z", "residual", "bound", "objective",
        )],
        *[(name, np.float32) for name in ("ridge_all", "residual_limit")],
        *[(name, np.int32) for name in ("k", "stride", "squared_loss", "steps", "free_columns")],
    ],
    align=True,
)  # fmt: skip
"""``struct HalfSweep`` of half_sweep.cuh."""

SEGMENT = 4096
"""Entries of one segment; rows longer than two of them are split. A constant, so that sums are
added in the same order on every device."""

_WARP_ENTRIES = (8, 16, 24, 32)
_SMALL_BLOCK_ENTRIES = (8, 16, 24, 32, 40, 48, 56, 64)  # EDGE = 8
_LARGE_BLOCK_ENTRIES = (80, 96, 112, 128, 160, 192, 224, 256)  # EDGE = 16
_SHORTEST_CHUNK = 64
_BESIDE_ONE_ANOTHER = 4  # blocks, that chunks are made smaller for
_AMPLE = 160 << 10  # shared memory of a multiprocessor that holds two large blocks
_RESERVED = 1024  # bytes of shared memory that the system keeps for every block
_WARP_BYTES = 40 << 10  # a warp that needs more would be too lonely on its multiprocessor
_SOLVERS = {"cholesky": 0, "cg": 1, "nnls": 2}
"""Of the solvers' ``kernel``: SOLVER of solve.cuh."""
_PANEL_STRIDE, _EXCHANGE = 36, 64  # cholesky.cuh


@dataclass(frozen=True)
class DeviceLimits:
    """What of a device decides where rows go.

    Attributes
    ----------
    architecture : int
        Compute capability, 90 for 9.0.
    shared_per_block : int
        Bytes of shared memory that one block can ask for.
    shared_per_multiprocessor : int
        Bytes that the blocks on one multiprocessor share.
    """

    architecture: int
    shared_per_block: int
    shared_per_multiprocessor: int

    @property
    def has_tensor_cores(self) -> bool:
        """Whether TF32 products are there."""
        return self.architecture >= 80

    def blocks(self, shared_bytes: int) -> int:
        """Return how many blocks' shared memory a multiprocessor holds; at least 1."""
        return max(1, self.shared_per_multiprocessor // (shared_bytes + _RESERVED))


@dataclass(frozen=True)
class Launch:
    """One launch: rows ``start`` to ``stop`` of the order, by one specialisation of one kernel.

    The rows come shortest first; blocks begin with the last, and so the longest, of them.
    ``empty`` rows have no entries. ``functions`` are those of split rows, with the bytes of shared
    memory that a block of each uses, at most ``shared_bytes``.
    """

    kernel: str
    macros: tuple[tuple[str, int], ...]
    block: int
    shared_bytes: int
    rows_per_block: int = 1
    chunk: int | None = None
    segment: int | None = None
    functions: tuple[tuple[str, int], ...] = ()
    empty: bool = False
    start: int = 0
    stop: int = 0

    @property
    def grid(self) -> int:
        """Number of blocks."""
        return -(-(self.stop - self.start) // self.rows_per_block)

    @property
    def definite(self) -> bool:
        """No row has a negative gram weight."""
        return "SIGNED" not in dict(self.macros)

    @property
    def path(self) -> str:
        """The name under which reports count the rows."""
        if self.empty:
            return "shared"
        return {"dual_warp": "dual", "dual_block": "dual", "split": "long"}.get(
            self.kernel, ("primal", "cg", "nnls")[dict(self.macros).get("SOLVER", 0)]
        )

    def __str__(self) -> str:
        """Return one line of a printed plan."""
        macros = " ".join(f"{name}={value}" for name, value in self.macros)
        chunk = "" if self.chunk is None else f", {self.chunk} columns at a time"
        return (
            f"{self.kernel:10} rows {self.start:>10} to {self.stop:>10}  {self.grid} blocks of "
            f"{self.block} threads, {self.shared_bytes / 1024:.1f} KB each{chunk}  [{macros}]"
        )


@dataclass(frozen=True)
class Plan:
    """The launches of one half-sweep; of each kind of rows the longest first.

    Attributes
    ----------
    launches : tuple of Launch
        Their rows are places in ``packing.order`` followed by ``packing.long_rows``.
    rest : tuple of (int, int)
        Runs of places that the general path has to solve.
    """

    launches: tuple[Launch, ...]
    rest: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """Return the plan as a table."""
        lines = [str(launch) for launch in self.launches]
        lines += [f"general    rows {start:>10} to {stop:>10}" for start, stop in self.rest]
        return "\n".join(lines)


def plan_half_sweep(
    packing: Packing,
    n_factors: int,
    solver: Solver,
    limits: DeviceLimits,
    *,
    tensor_cores: bool = False,
    stored_half: bool = False,
    segment: int = SEGMENT,
) -> Plan:
    """Plan one half-sweep.

    Parameters
    ----------
    packing : Packing
        Of the side to solve.
    n_factors : int
    solver : Solver
    limits : DeviceLimits
    tensor_cores : bool
        Multiply long rows' Grams on tensor cores (3xTF32).
    stored_half : bool
        The fixed side is stored as float16; rules tensor cores out.
    segment : int
        See :data:`SEGMENT`.
    """
    storage = (("STORED_HALF", 1),) if stored_half else ()
    tensor_cores = tensor_cores and not stored_half
    launches: list[Launch] = []
    rest: list[tuple[int, int]] = []
    for span in packing.spans:
        place = span.start
        for longest, launch in _ladder(
            span, n_factors, solver, limits, tensor_cores, stored_half, segment
        ):
            stop = span.place_above(longest)
            if stop <= place:
                continue
            if launch is None:
                rest.append((place, stop))
            else:
                macros = (*launch.macros, *storage)
                launches.append(replace(launch, macros=macros, start=place, stop=stop))
            place = stop
    launches.reverse()
    return Plan(tuple(launches), tuple(rest))


def _ladder(
    span: Span,
    n_factors: int,
    solver: Solver,
    limits: DeviceLimits,
    tensor_cores: bool,
    stored_half: bool,
    segment: int,
) -> Iterator[tuple[int, Launch | None]]:
    """Yield, from short to long rows, the longest row of a class and its launch."""
    if solver.kernel not in _SOLVERS:
        yield _ANY_LENGTH, None
        return
    dual_form = span.definite and solver.kernel == "cholesky"
    # Empty rows have no system of their own; the dual form's is the identity, so it may as well
    # take them, and nobody has to ask which rows are left.
    shortest = _dual(_WARP_ENTRIES[0], n_factors, limits) if dual_form else None
    yield 0, None if shortest is None else replace(shortest, empty=True)
    if dual_form:
        for longest in _WARP_ENTRIES + _SMALL_BLOCK_ENTRIES[4:] + _LARGE_BLOCK_ENTRIES:
            dual = _dual(longest, n_factors, limits)
            if dual is None:
                break
            yield min(longest, n_factors - 1), dual
            if longest >= n_factors - 1:
                break
        shortest_primal = n_factors
    else:
        shortest_primal = 1
    primal = _primal(
        n_factors,
        solver,
        limits,
        signed=not span.definite,
        tensor_cores=tensor_cores,
        stored_half=stored_half,
    )
    if primal is None:
        yield _ANY_LENGTH, None
        return
    yield shortest_primal - 1, None  # where the dual ladder ended early
    yield 2 * segment, primal
    functions = _split_functions(n_factors, solver.kernel, tensor_cores and limits.has_tensor_cores)
    yield (
        _ANY_LENGTH,
        replace(
            primal,
            kernel="split",
            segment=segment,
            shared_bytes=max(shared_bytes for _, shared_bytes in functions),
            functions=functions,
        ),
    )


_ANY_LENGTH = 1 << 62


def _dual(entries: int, n_factors: int, limits: DeviceLimits) -> Launch | None:
    """Return how rows of up to ``entries`` are solved in the dual form; None if they cannot be."""
    if entries <= _WARP_ENTRIES[-1]:
        warp_bytes = 4 * dual_warp_floats(entries, n_factors)
        if warp_bytes <= min(_WARP_BYTES, limits.shared_per_block):
            fitting = [n for n in (4, 2, 1) if n * warp_bytes <= limits.shared_per_block]
            warps = max(fitting, key=lambda n: n * limits.blocks(n * warp_bytes))
            return Launch(
                kernel="dual_warp",
                macros=(("TILES", entries // 8), ("WARPS", warps)),
                block=32 * warps,
                shared_bytes=warps * warp_bytes,
                rows_per_block=warps,
            )
    edge = 8 if entries <= _SMALL_BLOCK_ENTRIES[-1] else 16
    # How many are to share a multiprocessor's registers; whether they do is up to shared memory.
    blocks = 6 if edge == 8 else 1
    if edge == 16 and entries <= 128 and limits.shared_per_multiprocessor >= _AMPLE:
        blocks = 2
    chunk = _chunk(entries, edge, n_factors, limits, min(blocks, _BESIDE_ONE_ANOTHER))
    if chunk is None:
        return None
    return Launch(
        kernel="dual_block",
        macros=(("EDGE", edge), ("TILES", entries // edge), ("BLOCKS", blocks)),
        block=edge * edge,
        shared_bytes=4 * dual_block_floats(entries, edge, n_factors, chunk),
        chunk=chunk,
    )


def _chunk(
    entries: int, edge: int, n_factors: int, limits: DeviceLimits, wanted: int
) -> int | None:
    """Return how many columns of W a block of dual_block.cu holds at a time.

    As many as let ``wanted`` blocks share a multiprocessor, or, where not even 32 do, fewer blocks;
    None where one block cannot hold 32.
    """
    stride = stride_of(n_factors)
    for blocks in range(wanted, 0, -1):
        # Chunks of about the same size, for none of them to be short.
        parts = range(2, -(-stride // 32) + 1)
        for chunk in (stride, *(round_up(-(-stride // n), 32) for n in parts)):
            used = 4 * dual_block_floats(entries, edge, n_factors, chunk)
            fits = used <= limits.shared_per_block and blocks <= limits.blocks(used)
            if fits and (chunk >= min(stride, _SHORTEST_CHUNK) or blocks == 1):
                return chunk
    return None


def _primal(
    n_factors: int,
    solver: Solver,
    limits: DeviceLimits,
    *,
    signed: bool,
    tensor_cores: bool,
    stored_half: bool = False,
) -> Launch | None:
    """Return how rows are solved in the primal form; None if the system does not fit."""
    assert solver.kernel is not None
    size = round_up(n_factors, 32)
    tensor_cores = tensor_cores and limits.has_tensor_cores
    room = _primal_floats(size, solver.kernel, tensor_cores)
    edge = 8 if size <= 64 else 16
    blocks = 6 if edge == 8 else 2 if size <= 128 else 1
    # These need more registers than two blocks have each.
    hungry = signed or stored_half or (limits.architecture == 80 and size == 128)
    if solver.kernel == "nnls" or (edge == 16 and hungry):
        blocks = 1

    def shared_bytes(besides: int) -> int:
        return 4 * (room["vectors"] + max(room["stages"], room["panels"]) + besides)

    used, kept = shared_bytes(room["solver"]), False
    if solver.kernel == "cholesky":
        used = shared_bytes(room["sums"])
        copied = shared_bytes(max(room["panels"], room["sums"]))
        # A copy of the system spares a second pass over the entries, but is worth no block.
        if copied <= limits.shared_per_block:
            kept = min(blocks, limits.blocks(copied)) == min(blocks, limits.blocks(used))
        if kept:
            used = copied
    if size > 256 or used > limits.shared_per_block:
        return None
    macros = {
        "EDGE": edge,
        "UNITS": size // (2 * edge),
        "BLOCKS": min(blocks, limits.blocks(used)),
        "SOLVER": _SOLVERS[solver.kernel],
    }
    if kept:
        macros["KEPT"] = 1
    if signed:
        macros["SIGNED"] = 1
    if tensor_cores:
        macros["TENSOR_CORES"] = 1
    return Launch(
        kernel="primal", macros=tuple(macros.items()), block=edge * edge, shared_bytes=used
    )


def round_up(n: int, unit: int) -> int:
    """Return the smallest multiple of ``unit`` that is at least ``n``."""
    return -(-n // unit) * unit


def stride_of(n_factors: int) -> int:
    """Return the length of a row of factors in memory: whole 16-byte pieces."""
    return round_up(n_factors, 4)


def _padded(width: int) -> int:
    """Return the length of a row of W in shared memory: 4 mod 8."""
    return width if width % 8 == 4 else width + 4


def panel_floats(size: int) -> int:
    """Return the floats that a system of ``size`` rows takes; cholesky.cuh."""
    panels = size // 32
    return _PANEL_STRIDE * (panels * (size + 1) - 16 * panels * (panels - 1))


def dual_warp_floats(entries: int, n_factors: int) -> int:
    """Return the floats of shared memory that a warp of dual_warp.cu uses."""
    stride = stride_of(n_factors)
    return _EXCHANGE + entries + entries * _padded(stride) + 2 * stride + entries * (entries + 4)


def dual_block_floats(entries: int, edge: int, n_factors: int, chunk: int) -> int:
    """Return the floats of shared memory that a block of dual_block.cu uses."""
    size, warps = round_up(entries, 32), edge * edge // 32
    vectors = 6 * size + _EXCHANGE * warps + 2 * stride_of(n_factors)
    return vectors + panel_floats(size) + warps * chunk + entries * _padded(chunk)


def _primal_floats(size: int, kernel: str, tensor_cores: bool) -> dict[str, int]:
    """Return the floats of shared memory that a block of primal.cu or split.cu uses, for what."""
    threads = 64 if size <= 64 else 256
    tile_rows = 8 if size > 128 or tensor_cores else 16
    lanes = 32 if size >= 128 else (16 if size > 32 else 8)  # of one entry, check.cuh
    panels = panel_floats(size)
    return {
        "vectors": 4 * size + 4 + _EXCHANGE * threads // 32,
        "stages": 4 * threads + 2 * tile_rows * (size + 8),
        "panels": panels,
        "solver": {"cholesky": 0, "cg": size, "nnls": panels}[kernel],
        "sums": threads // lanes * size,
    }


def _split_functions(
    n_factors: int, kernel: str, tensor_cores: bool
) -> tuple[tuple[str, int], ...]:
    """Return the functions of split.cu, and the shared memory of a block of each."""
    size = round_up(n_factors, 32)
    room = _primal_floats(size, kernel, tensor_cores)
    used = {
        "split_gram": room["stages"],
        "split_solve": room["panels"] + (room["sums"] if kernel == "cholesky" else room["solver"]),
    }
    return tuple((name, 4 * (room["vectors"] + floats)) for name, floats in used.items())
