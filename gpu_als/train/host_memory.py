"""How much host memory a fit needs, with its data in memory or read from shards on disk.

Arithmetic on shapes: nothing is allocated, and no data is needed. Python itself and what it has
imported are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_als.core.memory import FitShape
from gpu_als.core.packing import row_elements

__all__ = ["HostPlan", "Threads", "plan_host"]

_ROW_BYTES = 48
"""Of each row: where it begins, in two types; its place in the order, its ridge and its count."""
_BATCH_ENTRY_BYTES = 56
"""Of each entry of a batch besides its row of factors: places, indices, weights, predictions."""
_THREAD_BYTES = 1 << 21
"""Of each thread: what the allocator keeps of arrays that have grown."""
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
    """

    number: int
    batch_elements: int
    block_elements: int

    def workspace(self, shape: FitShape) -> int:
        """Return the bytes that all threads use at the peak, where rows of all lengths occur."""
        k, value = shape.width, shape.value_bytes
        longest = shape.longest or shape.entries
        longest = min(longest, max(1, self.batch_elements // k))
        entries = round(self._rows_at_once(longest, k) * longest)
        side = min(longest, k)
        systems = round(self._rows_at_once(side, k) * side**2) if shape.exact else 0
        besides = _BATCH_ENTRY_BYTES * entries
        if k <= _SMALL_SYSTEM:
            besides = max(besides, value * systems)
        batch = value * (entries * k + systems) + besides + _THREAD_BYTES
        if not shape.base:
            return self.number * batch
        factors = max(shape.users, shape.items) * k
        blocks = -(-factors // self.block_elements)
        # In float64: blocks of factors, and their Grams, which wait to be added up.
        at_once = min(factors, self.number * self.block_elements)
        grams = k * k * min(blocks, _IN_FLIGHT * self.number)
        return self.number * batch + 8 * (at_once + grams)

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
        moves = shape.base or shape.bias
        sweep = max(shape.users, shape.items) * shape.width * value if moves else 0
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
        if part >= shape.entries:  # both sides are one part each, which stays
            return rows + round(shape.entries * (2 * (entry + copied) + set_apart)), 0
        # One is in use while the next is made ready; where nothing is done with the next one's
        # entries, the maps of them take no memory.
        ahead = min(part, shape.entries - part)
        mapped = part + ahead
        if not shape.base and shape.value_bytes == _STORED_BYTES:
            mapped = part
        return rows + mapped * entry + round((part + ahead) * copied) + ahead * set_apart, 0
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
