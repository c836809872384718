"""What a fit will need and how it will run, asked without data.

Arithmetic on shapes: nothing is allocated. Python itself and what it has imported are not counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gpu_als.backends import get_backend
from gpu_als.backends.native.dense import MOST_GRAMS
from gpu_als.backends.native.library import LINE
from gpu_als.backends.native.rows import SHARED_FROM, workspace_bytes
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core.memory import (
    DevicePlan,
    FitShape,
    batch_bytes,
    device_batch_elements,
    lay_out,
    most_factors,
)
from gpu_als.core.packing import row_elements
from gpu_als.errors import InputError, check_choice
from gpu_als.train.engine import HOST_BYTES

__all__ = ["FitPlan", "HostPlan", "Machine", "Threads", "plan", "plan_host"]


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
    check_choice(model, ("explicit", "implicit"), name="model")
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
        Threads(cpu.num_threads, cpu.batch_elements, cpu.block_elements, cpu.fused),
        device_memory,
        host_memory,
    )
    return FitPlan.of(shape, machine)


_MOST_WORKERS = 1024


@dataclass(frozen=True)
class Machine:
    """What a fit has to run on.

    Attributes
    ----------
    threads : Threads
        What solves rows where there is no device.
    device_memory : int or None
        Bytes free on the GPU; None without one.
    host_memory : int or None
        Bytes of the host; None where they are enough.
    """

    threads: Threads
    device_memory: int | None
    host_memory: int | None


@dataclass(frozen=True)
class FitPlan:
    """How a fit will run, and the memory that takes; made by :func:`gpu_als.train.planning.plan`.

    Attributes
    ----------
    shape : FitShape
    machine : Machine
    host : HostPlan
        Without Python itself and what it has imported.
    device : DevicePlan or None
        None where the fit runs on the CPU.
    """

    shape: FitShape
    machine: Machine
    host: HostPlan
    device: DevicePlan | None

    @classmethod
    def of(cls, shape: FitShape, machine: Machine) -> FitPlan:
        """Take the quickest way that fits: data in memory before shards, resident before parts."""
        device: DevicePlan | None = None
        threads: Threads | None = machine.threads
        part = None
        if machine.device_memory is not None:
            workspace = batch_bytes(device_batch_elements(machine.device_memory))
            device = lay_out(shape, machine.device_memory, workspace)
            threads, part = None, device.part_bytes
        in_memory, from_shards = (
            plan_host(shape, threads, from_shards=shards, part_bytes=part)
            for shards in (False, True)
        )
        host = in_memory
        if machine.host_memory is not None and in_memory.total > machine.host_memory:
            host = min(from_shards, in_memory, key=lambda each: each.total)
        return cls(shape, machine, host, device)

    @property
    def host_fits(self) -> bool:
        """Whether the host has enough memory."""
        return self.machine.host_memory is None or self.host.total <= self.machine.host_memory

    @property
    def device_fits(self) -> bool:
        """Whether the device has enough memory; True without one."""
        given = self.machine.device_memory
        return self.device is None or given is None or self.device.total <= given

    @property
    def fits(self) -> bool:
        """Whether the fit can run."""
        return self.host_fits and self.device_fits

    @cached_property
    def options(self) -> tuple[str, ...]:
        """What else would fit, where this does not."""
        if self.fits:
            return ()
        found = []
        if fewer := most_factors(self._fits_with, self.shape.factors):
            found.append(f"at most {fewer:,} factors")
        workers = next((n for n in range(2, _MOST_WORKERS + 1) if self._fits_on(n)), None)
        if workers:
            found.append(f"{workers:,} workers with as much memory each (gpu_als.dask)")
        without = FitPlan.of(self.shape, replace(self.machine, device_memory=None))
        if self.device and without.fits:
            found.append("the processors instead of the GPU (backend='numpy', use_gpu=False)")
        if not self.device_fits and self.device:
            found.append(f"a GPU with {self.device.total:,} bytes free")
        if not self.host_fits:
            found.append(f"{self.host.total:,} bytes of host memory")
        return tuple(found)

    @property
    def summary(self) -> str:
        """What will happen, or what is missing and what would fit, in words."""
        if not self.fits:
            missing = []
            if not self.device_fits and self.device:
                missing.append(
                    f"{self.device.total:,} bytes of GPU memory, of which "
                    f"{self.machine.device_memory:,} are there"
                )
            if not self.host_fits:
                missing.append(
                    f"{self.host.total:,} bytes of host memory, of which "
                    f"{self.machine.host_memory:,} are there"
                )
            return (
                f"this fit needs {' and '.join(missing)}; what would fit: "
                f"{'; or '.join(self.options)}"
            )
        if self.device is None:
            number = self.machine.threads.number
            where = f"on the CPU, with {number} thread" + "s" * (number > 1)
        elif self.device.part_bytes is None:
            where = "on the GPU, where all data stay"
        else:
            where = (
                "on the GPU, through which the data pass in every half-sweep, in parts of "
                f"{self.device.part_bytes:,} bytes"
            )
        source = "the data are in host memory"
        if self.host.from_shards:
            source = "the data do not fit in host memory: pass them as shards (gpu-als convert)"
        return f"The fit runs {where}; {source}."

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, for JSON."""
        parts: dict[str, Any] = {}
        for name, each in (("host", self.host), ("device", self.device)):
            parts[name] = None if each is None else asdict(each) | {"total": each.total}
        return {
            "shape": asdict(self.shape),
            "threads": self.machine.threads.number,
            "host_memory": self.machine.host_memory,
            "device_memory": self.machine.device_memory,
            **parts,
            "fits": self.fits,
            "options": list(self.options),
            "summary": self.summary,
        }

    def _fits_with(self, factors: int) -> bool:
        return FitPlan.of(replace(self.shape, factors=factors), self.machine).fits

    def _fits_on(self, n_workers: int) -> bool:
        """Return whether so many machines suffice, each with its share of the rows of both sides.

        A worker has the blocks of the whole fixed side, joins them and takes them into their
        coordinates; of its own rows it keeps what they were and what they become.
        """
        entries = -(-self.shape.entries // n_workers)
        share = FitPlan.of(replace(self.shape, entries=entries), self.machine)
        value = self.shape.width * self.shape.value_bytes
        fixed = max(self.shape.users, self.shape.items) * value
        own = -(-(self.shape.users + self.shape.items) * value // n_workers)
        host = share.host.data + share.host.workspace + 3 * fixed + 2 * own
        given = self.machine.host_memory
        return share.device_fits and (given is None or host <= given)


# The host

_ROW_BYTES = 48
"""Of each row: where it begins, in two types; its place in the order, its ridge and its count."""
_BATCH_ENTRY_BYTES = 56
"""Of each entry of a batch besides its row of factors: places, indices, weights, predictions."""
_THREAD_BYTES = 1 << 21
"""Of each thread: what the allocator keeps of arrays that have grown."""
_KEPT_BYTES = 1 << 25
"""Of arrays that went: the most that the allocator may keep for the next ones of their size."""
_SMALL_SYSTEM = 32
"""Factors up to which the systems of a batch are factored as a copy."""
_IN_FLIGHT = 8
"""Results of each thread that may wait to be added up."""
_SHARD_BYTES = 1 << 28
"""Of a shard on disk, unless told otherwise; when it is first used, all of it is checked."""
_STORED_BYTES = 4
"""Of a value on disk; where values are wanted wider, both are in memory."""
_PART_ENTRIES = (1 << 27) // 12
"""Of a part that is read from shards."""


@dataclass(frozen=True)
class Threads:
    """What solves rows on the host.

    Attributes
    ----------
    number : int
    batch_elements : int
        Array elements that a batch may use, in each thread.
    block_elements : int
        Factors that one step of a pass over all rows takes.
    fused : bool
        Compiled code solves all rows but the very longest.
    """

    number: int
    batch_elements: int
    block_elements: int
    fused: bool

    def workspace(self, shape: FitShape) -> int:
        """Return the bytes that all threads use at the peak, where rows of all lengths occur."""
        k, value = shape.width, shape.value_bytes
        longest = shape.longest or shape.entries
        batch = 0
        if self.fused:
            batch = workspace_bytes(k, value, min(longest, SHARED_FROM)) + _THREAD_BYTES
        if not self.fused or longest > SHARED_FROM:
            batch = max(batch, self._batch(shape, longest))
        if not shape.base:
            return self.number * batch
        factors = max(shape.users, shape.items) * k
        if self.fused:
            kept = min(_KEPT_BYTES, self.sweep(shape))
            return self.number * batch + 8 * k * k * MOST_GRAMS + kept
        blocks = -(-factors // self.block_elements)
        # In float64: blocks of factors, and their Grams, which wait to be added up.
        at_once = min(factors, self.number * self.block_elements)
        grams = k * k * min(blocks, _IN_FLIGHT * self.number)
        return self.number * batch + 8 * (at_once + grams)

    def sweep(self, shape: FitShape) -> int:
        """Return the bytes of what one half-sweep adds: the fixed side in its coordinates.

        Compiled code has it once more where rows do not begin on cache lines as they are.
        """
        one = max(shape.users, shape.items) * shape.value_bytes
        moves = shape.base or shape.bias
        padded = -(-shape.width * shape.value_bytes // LINE) * LINE // shape.value_bytes
        again = self.fused and not (shape.base and padded == shape.width)
        return one * (shape.width * moves + padded * again)

    def _batch(self, shape: FitShape, longest: int) -> int:
        k, value = shape.width, shape.value_bytes
        longest = min(longest, max(1, self.batch_elements // k))
        entries = round(self._rows_at_once(longest, k) * longest)
        side = min(longest, k)
        systems = round(self._rows_at_once(side, k) * side**2) if shape.exact else 0
        besides = _BATCH_ENTRY_BYTES * entries
        if k <= _SMALL_SYSTEM:
            besides = max(besides, value * systems)
        return value * (entries * k + systems) + besides + _THREAD_BYTES

    def _rows_at_once(self, width: int, k: int) -> float:
        return self.batch_elements / row_elements(width, k)


@dataclass(frozen=True)
class HostPlan:
    """What lies in host memory during a fit.

    Attributes
    ----------
    from_shards : bool
        The data are read from disk part by part; else they are in memory.
    data : int
        Bytes of both orientations of the data, or of the parts there at one time, with what is
        known of each row.
    factors : int
        Bytes of both sides' factors.
    sweep : int
        Bytes of what one half-sweep adds: the fixed side in its coordinates.
    workspace : int
        Bytes of what batches use, in all threads.
    around : int
        Bytes beyond that at the peak, where it is not in a half-sweep but while data are checked or
        weighed, factors drawn or handed out.
    """

    from_shards: bool
    data: int
    factors: int
    sweep: int
    workspace: int
    around: int

    @property
    def total(self) -> int:
        """Bytes in all, at the peak."""
        return self.data + self.factors + self.sweep + self.workspace + self.around


def plan_host(
    shape: FitShape,
    threads: Threads | None,
    *,
    from_shards: bool,
    part_bytes: int | None = None,
) -> HostPlan:
    """Add up what the host needs.

    Parameters
    ----------
    shape : FitShape
    threads : Threads or None
        What solves the rows; None where a device does.
    from_shards : bool
        Read the data from disk; else have them in memory.
    part_bytes : int or None
        The size of the parts that pass through a device; see
        :class:`~gpu_als.core.memory.DevicePlan`.
    """
    rows, value = shape.users + shape.items, shape.value_bytes
    one = rows * shape.width * value
    factors = one * (shape.copies if threads else 1)
    sweep = workspace = 0
    if threads:
        sweep = threads.sweep(shape)
        workspace = threads.workspace(shape)
    data, loading = _data(shape, threads, from_shards=from_shards, part_bytes=part_bytes)
    moments = [factors + sweep + workspace, factors + loading]
    if from_shards:
        moments.append(min(shape.entries * _entry_bytes(shape, True), _SHARD_BYTES) - data)
    if not shape.base:
        moments.append(factors + workspace + one)  # in the end both sides are copied
    around = max(moments) - moments[0]
    return HostPlan(from_shards, data, factors, sweep, workspace, around)


def _data(
    shape: FitShape,
    threads: Threads | None,
    *,
    from_shards: bool,
    part_bytes: int | None,
) -> tuple[int, int]:
    """Return the bytes of the data in memory, and of what is there besides while it is loaded."""
    entry = _entry_bytes(shape, from_shards)
    set_apart = round(entry * shape.ones) + 1  # put in order; which ones they are
    copied = float(entry if shape.ones else 0)
    if threads:  # the entries' weights, beside their values
        weights = (2 if shape.weighted else 1) * shape.value_bytes
        copied += (1 - shape.ones) * weights
    rows = (shape.users + shape.items) * _ROW_BYTES
    if from_shards:
        part = _PART_ENTRIES
        if part_bytes is not None:
            part = min(part, part_bytes // shape.entry_bytes)
        part = max(part, shape.longest)
        kept = HOST_BYTES / copied if threads else 0.0  # entries of each side that stay
        if max(part, kept) >= shape.entries:
            most = min(part, shape.entries)
            if not threads:
                held = rows + round(2 * shape.entries * (entry + copied))
                return held, most * set_apart
            # The maps of values are let go once weights are there: one block's are in use, beside
            # two marks for each of its entries.
            indices = entry - shape.value_bytes
            stays = round(2 * shape.entries * (indices + copied))
            return rows + stays + most * (shape.value_bytes + 2), 0
        # One is in use while the next is made ready; where nothing is done with the next one's
        # entries, the maps of them take no memory.
        prefetched = min(part, shape.entries - part)
        mapped = part + prefetched
        if not shape.base and shape.value_bytes == _STORED_BYTES:
            mapped = part
        passing = mapped * entry + round((part + prefetched) * copied) + prefetched * set_apart
        return rows + round(2 * kept * (entry + copied)) + passing, 0
    held = 2 * shape.entries * entry + rows
    if threads:
        return held + round(2 * shape.entries * copied), shape.entries * set_apart
    if part_bytes is None:
        return held, round(shape.entries * (copied + set_apart))
    part = part_bytes // shape.entry_bytes
    return held + round(part * (2 * copied + set_apart)), 0


def _entry_bytes(shape: FitShape, from_shards: bool) -> int:
    """Return the bytes of an entry: its column and its value.

    SciPy takes eight bytes for columns from 2^31 entries on, and shards only from 2^31 columns on.
    """
    largest = max(shape.users, shape.items, 0 if from_shards else shape.entries)
    return (4 if largest < 1 << 31 else 8) + shape.value_bytes
