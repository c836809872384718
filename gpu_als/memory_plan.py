"""How much memory a fit needs on a device, and how its data is cut when that is too much.

Arithmetic on shapes: nothing is allocated, and no data is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpu_als.errors import BackendError

__all__ = [
    "SPLIT_FLOATS",
    "DevicePlan",
    "FitShape",
    "device_batch_elements",
    "device_workspace",
    "lay_out",
    "most_factors",
    "plan_device",
]

SPLIT_FLOATS = 1 << 25
"""Floats of the shares of split rows that are on a device at the same time, unless one row needs
more."""
_SMALLEST_BATCH, _LARGEST_BATCH = 1 << 22, 1 << 28
_BYTES_PER_ELEMENT = 64
"""A batch keeps a handful of arrays of its size; this leaves most of the memory for data."""
_BATCH_BYTES = 16
"""Of each element, in float64: what batches have been seen to use at most."""

_SMALLEST_PART = 1 << 20
"""Bytes. Smaller parts would spend their time on launches."""
_MOST_PARTS = 1024
_ROW_BYTES = 40  # of each row: where it begins, its place in the order and the order; its check
_INDEX_BYTES = 4
_TEMPORARIES = 4  # arrays of values
_PARTS_AT_ONCE = 4  # one being solved, one on its way, and the temporaries of the latter


@dataclass(frozen=True)
class FitShape:
    """What decides the memory of a fit.

    Attributes
    ----------
    users, items, entries, factors : int
        Factors without biases.
    value_bytes : int
        Of a value and of a factor: 4 or 8.
    longest : int
        Entries of the longest row of either side.
    copies : int
        How often the factors are there at the same time.
    bias : bool
        The factors have one more column, for biases.
    """

    users: int
    items: int
    entries: int
    factors: int
    value_bytes: int = 4
    longest: int = 0
    copies: int = 1
    bias: bool = False

    @property
    def width(self) -> int:
        """Columns of the factors."""
        return self.factors + self.bias

    @property
    def factor_bytes(self) -> int:
        """Bytes of one row of factors as kernels want it: whole 16-byte pieces."""
        return -(-self.width // 4) * 4 * self.value_bytes

    @property
    def entry_bytes(self) -> int:
        """Bytes of an entry on the device: its index, the root of its weight, its target."""
        return _INDEX_BYTES + 2 * self.value_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row while it is solved: bookkeeping, solution, linear part and a copy."""
        return _ROW_BYTES + 3 * self.factor_bytes


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


def device_workspace(batch_elements: int) -> int:
    """Return the bytes that batches of so many elements, and rows split over blocks, use."""
    return 4 * SPLIT_FLOATS + _BATCH_BYTES * batch_elements


def plan_device(shape: FitShape, available: int, workspace: int) -> DevicePlan:
    """Keep all data on the device if there is room, else cut it into parts.

    Parameters
    ----------
    shape : FitShape
    available : int
        Bytes of the device that are free.
    workspace : int
        Bytes that batches use.

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
    rows, most = shape.users + shape.items, max(shape.users, shape.items)
    factors = shape.copies * rows * shape.width * shape.value_bytes
    # The fixed side in the frame's coordinates, and as kernels want it.
    sweep = 2 * most * shape.factor_bytes
    entries = shape.entries * shape.entry_bytes
    # While weights are worked out, before anything is solved, there are temporaries.
    loading = _TEMPORARIES * shape.entries * shape.value_bytes
    solving = sweep + most * (shape.row_bytes - _ROW_BYTES)
    resident = DevicePlan(
        None,
        factors,
        2 * entries + rows * _ROW_BYTES,
        max(solving, loading - workspace),
        workspace,
    )
    if resident.total <= available:
        return resident
    whole = entries + most * shape.row_bytes
    longest = shape.longest * shape.entry_bytes + shape.row_bytes
    least = max(_SMALLEST_PART, longest, whole // _MOST_PARTS)
    room = (available - factors - sweep - workspace) // _PARTS_AT_ONCE
    part = max(min(room, whole // 2), least)
    streamed = DevicePlan(part, factors, _PARTS_AT_ONCE * part, sweep, workspace)
    return min(streamed, resident, key=lambda plan: plan.total)
