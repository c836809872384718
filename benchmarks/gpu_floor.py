"""What a GPU can do at best, measured, and the time below which no exact half-sweep can come."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """What solving some rows takes, at least.

    Attributes
    ----------
    bytes : float
        Every entry gathers one row of factors, an index and a value.
    flops : float
        Every row costs the cheaper of the dual and the primal form.
    """

    bytes: float
    flops: float

    @classmethod
    def of(cls, lengths: np.ndarray, k: int) -> Work:
        """Return the work of rows with these numbers of entries at ``k`` factors."""
        n = lengths.astype(np.float64)
        dual, primal = n**2 * k + n**3 / 3, n * k**2 + k**3 / 3
        return cls(float(n.sum() * (4 * k + 8)), float(np.minimum(dual, primal).sum()))


@dataclass(frozen=True)
class Ceilings:
    """Measured rates: bytes/s of a copy, read and written, and FLOP/s of matrix products."""

    bytes: float
    flops: float
    tf32_flops: float

    def floor(self, work: Work) -> tuple[float, float]:
        """Return the milliseconds that memory and arithmetic take; the larger is the floor."""
        return 1e3 * work.bytes / self.bytes, 1e3 * work.flops / self.flops

    def achieved(self, ms: float, *halves: Work) -> dict[str, float]:
        """Return the rates of work done in ``ms``, both terms of the floor, and its fraction.

        Half-sweeps follow one another, so the floors of several add up.
        """
        floors = [self.floor(work) for work in halves]
        floor = sum(max(terms) for terms in floors)
        return {
            "GB/s": sum(work.bytes for work in halves) / ms / 1e6,
            "TFLOP/s": sum(work.flops for work in halves) / ms / 1e9,
            "memory_ms": sum(memory for memory, _ in floors),
            "arithmetic_ms": sum(arithmetic for _, arithmetic in floors),
            "floor_ms": floor,
            "of_floor": floor / ms,
        }


def median_ms(
    xp: Any, steps: Sequence[Callable[[], Any]], *, repeats: int = 4, enough: float = 8.0
) -> tuple[np.ndarray, int]:
    """Time steps that follow one another, by CUDA events on the current stream.

    Parameters
    ----------
    xp : module
        CuPy.
    steps : callables
    repeats : int
        Rounds to time after one that warms up.
    enough : float
        Seconds after which no further round begins; a single round is its own warm-up.

    Returns
    -------
    ms : array, shape (len(steps),)
        Medians.
    rounds : int
        How many they are medians of.
    """
    times: list[list[float]] = []
    while len(times) <= repeats and sum(map(sum, times)) < 1e3 * enough:
        events = [xp.cuda.Event() for _ in range(len(steps) + 1)]
        events[0].record()
        for step, event in zip(steps, events[1:], strict=True):
            step()
            event.record()
        events[-1].synchronize()
        times.append([xp.cuda.get_elapsed_time(*pair) for pair in pairwise(events)])
    timed = times[1:] or times
    return np.median(timed, axis=0), len(timed)


def measure_ceilings(xp: Any, *, size: int = 8192, copied: int = 1 << 30) -> Ceilings:
    """Measure a copy of ``copied`` bytes and products of ``size`` x ``size`` matrices.

    Where there are no TF32 tensor cores the products are in float32 both times.
    """
    source = xp.ones(copied // 4, np.float32)
    target = xp.empty_like(source)
    (copy,), _ = median_ms(xp, [lambda: xp.copyto(target, source)], repeats=20)
    a, b = (_normal(xp, size, seed) for seed in (1, 2))
    out = xp.empty_like(a)

    def product() -> float:
        (ms,), _ = median_ms(xp, [lambda: xp.matmul(a, b, out=out)], repeats=10)
        return 2 * size**3 / (ms * 1e-3)

    in_float32 = product()
    with _tf32():
        in_tf32 = product()
    return Ceilings(2 * source.nbytes / (copy * 1e-3), in_float32, in_tf32)


def _normal(xp: Any, size: int, seed: int) -> Any:
    return xp.random.default_rng(seed).standard_normal((size, size), dtype=np.float32)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    """Let CuPy multiply float32 matrices in TF32; what CUPY_TF32=1 does for a whole process."""
    from cupy._core import _routines_linalg as linalg

    single = np.dtype(np.float32)
    before = linalg.get_compute_type(single)
    with warnings.catch_warnings():  # before compute capability 8.0 it warns and changes nothing
        warnings.simplefilter("ignore")
        linalg.set_compute_type(single, linalg.COMPUTE_TYPE_TF32)
    try:
        yield
    finally:
        linalg.set_compute_type(single, before)
