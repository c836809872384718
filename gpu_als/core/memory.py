"""What decides the memory of a fit, and what each entry and row of it takes on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpu_als.errors import BackendError

__all__ = [
    "CONVERTED_ROWS",
    "DEVICE_BLOCK",
    "ROW_BYTES",
    "SPLIT_FLOATS",
    "DevicePlan",
    "FitShape",
    "batch_bytes",
    "device_batch_elements",
    "lay_out",
    "most_factors",
    "plan_device",
]

SPLIT_FLOATS = 1 << 25
"""Floats of the shares of split rows that are on a device at the same time, unless one row needs
more."""
ROW_BYTES = 44  # of each row: where it and its entries of confidence 1 begin, its place in the
# order and the order; its check
_INDEX_BYTES = 4
_SPLIT_FROM = 8192
"""Entries up to which no row is split."""
DEVICE_BLOCK = 1 << 25
"""Factors that are taken into float64, and into other coordinates, at the same time."""
CONVERTED_ROWS = 1 << 14
"""Rows that are taken out of coordinates at the same time."""


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
    base : bool
        All cells have a weight, as in implicit feedback.
    weighted : bool
        Entries have weights besides their targets.
    ones : float
        The share of entries with confidence 1. Where there are some, rows have a linear part.
    exact : bool
        Rows are solved exactly.
    half : bool
        The fixed side is gathered as float16.
    """

    users: int
    items: int
    entries: int
    factors: int
    value_bytes: int = 4
    longest: int = 0
    copies: int = 1
    bias: bool = False
    base: bool = True
    weighted: bool = True
    ones: float = 1.0
    exact: bool = True
    half: bool = False

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
        return _INDEX_BYTES + (2 if self.weighted else 1) * self.value_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row while it is solved: what is known of it, and :attr:`solving_bytes`."""
        return ROW_BYTES + self.solving_bytes

    @property
    def fixed_bytes(self) -> int:
        """Bytes of a row of the fixed side besides its factors.

        It is there in the coordinates of the half-sweep or with a 1 for its bias, and once more as
        kernels want it where that is different.
        """
        moved = self.width * self.value_bytes if self.base or self.bias else 0
        if self.half and self._by_kernels:
            return moved + self.factor_bytes // 2
        return moved + (self.factor_bytes if self._is_padded else 0)

    @property
    def solving_bytes(self) -> int:
        """Bytes of a row's solution in coordinates and out of them, its linear part, its check."""
        if not self._by_kernels or not (self.base or self._is_padded):
            return 0
        linear = self.factor_bytes if self.base and self.ones else 0
        moved = self.width * self.value_bytes if self.base else 0
        return linear + self.factor_bytes + moved + self.width

    @property
    def temporary_bytes(self) -> int:
        """Bytes of an entry's value, beyond those of its index, which follows once it is gone."""
        return max(0, self.value_bytes - _INDEX_BYTES)

    @property
    def frame_bytes(self) -> int:
        """Bytes that it takes to make the coordinates, before anything is solved in them."""
        most = max(self.users, self.items) * self.width
        return 16 * min(most, DEVICE_BLOCK) if self.base else 0

    @property
    def _by_kernels(self) -> bool:
        return self.value_bytes == 4

    @property
    def _is_padded(self) -> bool:
        return self._by_kernels and self.width % 4 > 0

    def workspace(self, batches: int) -> int:
        """Return the workspace where batches use so many bytes."""
        converted = 2 * CONVERTED_ROWS * self.factor_bytes if self.base else 0
        may_split = self._by_kernels and not 0 < self.longest <= _SPLIT_FROM
        return batches + converted + (4 * SPLIT_FLOATS if may_split else 0)


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
