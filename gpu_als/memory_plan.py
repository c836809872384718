"""How much memory a fit needs on a device, and how its data is cut when that is too much.

Arithmetic on shapes: nothing is allocated, and no data is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_als.errors import BackendError

__all__ = ["DevicePlan", "FitShape", "plan_device"]

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
    value_bytes : int
        Of a value and of a factor: 4 or 8.
    longest : int
        Entries of the longest row of either side.
    copies : int
        How often the factors are there at the same time.
    """

    users: int
    items: int
    entries: int
    factors: int
    value_bytes: int = 4
    longest: int = 0
    copies: int = 1

    @property
    def factor_bytes(self) -> int:
        """Bytes of one row of factors as kernels want it: whole 16-byte pieces."""
        return -(-self.factors // 4) * 4 * self.value_bytes

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
    rows, most = shape.users + shape.items, max(shape.users, shape.items)
    factors = shape.copies * rows * shape.factors * shape.value_bytes
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
    part = min(room, whole // 2)
    if part < least:
        needed = min(resident.total, factors + sweep + workspace + _PARTS_AT_ONCE * least)
        raise BackendError(
            f"this fit needs about {needed:,} bytes of GPU memory, of which {available:,} are "
            "free; use fewer factors, less data or backend='numpy' (use_gpu=False)"
        )
    return DevicePlan(part, factors, _PARTS_AT_ONCE * part, sweep, workspace)
