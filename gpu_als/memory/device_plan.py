"""How much memory a fit needs on a device, and how its data is cut when that is too much.

Arithmetic on shapes: nothing is allocated, and no data is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpu_als.errors import BackendError
from gpu_als.memory.fit_shape import ROW_BYTES, FitShape

__all__ = [
    "DevicePlan",
    "FitShape",
    "batch_bytes",
    "device_batch_elements",
    "lay_out",
    "most_factors",
    "plan_device",
]

_SMALLEST_BATCH, _LARGEST_BATCH = 1 << 22, 1 << 28
_BYTES_PER_ELEMENT = 64
"""A batch keeps a handful of arrays of its size; this leaves most of the memory for data."""
_BATCH_BYTES = 16
"""Of each element, in float64: what batches have been seen to use at most."""

_SMALLEST_PART = 1 << 20
"""Bytes. Smaller parts would spend their time on launches."""
_MOST_PARTS = 1024


@dataclass(frozen=True)
class DevicePlan:
    """What lies on the device during a fit.

    Attributes
    ----------
    part_bytes : int or None
        The size of a part, by the bytes of its entries and rows; None where all data stays on the
        device.
    factors, data, sweep, workspace : int
        Bytes: both sides' factors; the entries and rows there at one time; what one half-sweep adds
        (the fixed side in its coordinates); what batches use.
    """

    part_bytes: int | None
    factors: int
    data: int
    sweep: int
    workspace: int

    @property
    def total(self) -> int:
        """Bytes in all, at the peak."""
        return self.factors + self.data + self.sweep + self.workspace


def device_batch_elements(total: int) -> int:
    """Return the array elements that a batch may use on a device of so many bytes in all.

    Not of so many that are free: how batches are cut decides how sums are rounded.
    """
    return min(max(total // _BYTES_PER_ELEMENT, _SMALLEST_BATCH), _LARGEST_BATCH)


def batch_bytes(batch_elements: int) -> int:
    """Return the bytes that batches of so many elements use."""
    return _BATCH_BYTES * batch_elements


def plan_device(shape: FitShape, available: int, workspace: int) -> DevicePlan:
    """Keep all data on the device if there is room, else cut it into parts.

    Parameters
    ----------
    shape : FitShape
    available : int
        Bytes of the device that are free.
    workspace : int
        Bytes that batches use; what kernels use is added.

    Raises
    ------
    BackendError
        Not even the smallest parts fit; the message says what is needed and what there is.
    """
    plan = lay_out(shape, available, workspace)
    if plan.total <= available:
        return plan

    def fits(factors: int) -> bool:
        return lay_out(replace(shape, factors=factors), available, workspace).total <= available

    fewer = most_factors(fits, shape.factors)
    hint = f" ({fewer:,} would fit)" if fewer else ""
    raise BackendError(
        f"this fit needs about {plan.total:,} bytes of GPU memory, of which {available:,} are "
        f"free; use fewer factors{hint}, less data or backend='numpy' (use_gpu=False)"
    )


def most_factors(fits: Callable[[int], bool], below: int) -> int:
    """Return the largest number of factors that fits, below one that does not; 0 for none."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def lay_out(shape: FitShape, available: int, workspace: int) -> DevicePlan:
    """Return the plan of :func:`plan_device`, or that which needs least where none fits."""
    workspace = shape.workspace(workspace)
    rows, most = shape.users + shape.items, max(shape.users, shape.items)
    factors = shape.copies * rows * shape.width * shape.value_bytes
    entries = shape.entries * shape.entry_bytes
    fixed = most * shape.fixed_bytes
    # Before there is a solution, or a batch, coordinates are made; before that, data are loaded.
    solving = max(
        shape.users * shape.solving_bytes + shape.items * shape.fixed_bytes,
        shape.items * shape.solving_bytes + shape.users * shape.fixed_bytes,
    )
    making = fixed + shape.frame_bytes - workspace
    loading = shape.entries * shape.temporary_bytes - workspace
    resident = DevicePlan(
        None, factors, 2 * entries + rows * ROW_BYTES, max(solving, making, loading), workspace
    )
    if resident.total <= available:
        return resident
    whole = entries + most * shape.row_bytes
    longest = shape.longest * shape.entry_bytes + shape.row_bytes
    least = max(_SMALLEST_PART, longest, whole // _MOST_PARTS)
    sweep = max(fixed, making)
    # One part is solved; one is on its way, with what its weights take meanwhile.
    at_once = 2 + shape.temporary_bytes / shape.entry_bytes
    part = int((available - factors - sweep - workspace) / at_once)
    part = max(min(part, whole // 2), least)
    streamed = DevicePlan(part, factors, int(part * at_once), sweep, workspace)
    return min(streamed, resident, key=lambda plan: plan.total)
