"""What a fit will need and how it will run, asked without data."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.backends import get_backend
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.errors import InputError
from gpu_als.memory.fit_plan import FitPlan, Machine
from gpu_als.memory.fit_shape import FitShape
from gpu_als.memory.host_plan import Threads

__all__ = ["FitPlan", "plan"]


def plan(
    users: int,
    items: int,
    nnz: int,
    factors: int,
    *,
    model: str = "explicit",
    dtype: Any = np.float32,
    bias: bool | None = None,
    exact: bool | None = None,
    ones: float | None = None,
    longest: int = 0,
    copies: int = 1,
    threads: int = 0,
    device_memory: int | None = None,
    host_memory: int | None = None,
) -> FitPlan:
    """Predict the memory of a fit and how it will run, without data and without a device.

    Parameters
    ----------
    users, items, nnz : int
        The shape of the matrix, and its number of entries.
    factors : int
    model : {"explicit", "implicit"}
        :class:`~gpu_als.ExplicitALS` or :class:`~gpu_als.AlternatingLeastSquares`.
    dtype : numpy.float32 or numpy.float64
        Of the factors, and of the matrix that is passed to ``fit``.
    bias : bool, optional
        As in :class:`~gpu_als.ExplicitALS`: True unless the model is implicit.
    exact : bool, optional
        Exact solves instead of conjugate gradients; by default as the model has it.
    ones : float, optional
        The share of entries whose confidence is 1, from 0 to 1, as of plays that were counted once
        with ``alpha=1``: they are set apart, which copies the data. 1 for implicit models, unless
        given, which is the most it can take; 0 for explicit ones and for iALS.
    longest : int
        Entries of the longest row of either side; 0 where that is not known.
    copies : int
        How often the factors are there: once more with a validation set, and with a callback.
    threads : int
        Of the CPU; 0 for all processors of this machine.
    device_memory : int, optional
        Bytes that are free on the GPU; without them the plan is for the CPU.
    host_memory : int, optional
        Bytes of host memory that the fit may take; None for no limit.

    Returns
    -------
    FitPlan

    Raises
    ------
    InputError
        An argument is out of range.
    """
    implicit = model == "implicit"
    if model not in ("explicit", "implicit"):
        raise InputError(f"model must be 'explicit' or 'implicit', not {model!r}")
    numbers = {"users": users, "items": items, "nnz": nnz, "factors": factors, "copies": copies}
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} must be 1 or more, not {number}")
    if nnz > users * items:
        raise InputError(f"nnz is {nnz:,}, more than users times items, {users * items:,}")
    for name, memory in (("device_memory", device_memory), ("host_memory", host_memory)):
        if memory is not None and memory < 1:
            raise InputError(f"{name} must be a number of bytes above 0, not {memory}")
    if not 0 <= longest <= max(users, items):
        raise InputError(f"longest must be from 0 to {max(users, items):,}, not {longest}")
    if ones is None:
        ones = 1.0 if implicit else 0.0
    if not 0 <= ones <= (1 if implicit else 0):
        raise InputError(f"ones must be from 0 to 1, and 0 for explicit models, not {ones}")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise InputError(f"dtype must be numpy.float32 or numpy.float64, not {dtype!r}")
    has_bias = not implicit if bias is None else bias
    shape = FitShape(
        users,
        items,
        nnz,
        factors,
        np.dtype(dtype).itemsize,
        longest,
        copies,
        has_bias,
        base=implicit,
        weighted=implicit,
        ones=float(ones),
        exact=not implicit if exact is None else exact,
    )
    cpu = get_backend("numpy", num_threads=threads)
    assert isinstance(cpu, NumpyBackend)
    machine = Machine(
        Threads(cpu.num_threads, cpu.batch_elements, cpu.block_elements),
        device_memory,
        host_memory,
    )
    return FitPlan.of(shape, machine)
