"""The second stage of a conversion: numbers the entries and sorts them out by part."""

from __future__ import annotations

import numpy as np

from gpu_als.data.shards.entries import Runs, changed, read_blocks
from gpu_als.data.shards.journal import Journal
from gpu_als.data.shards.numbering import Rows
from gpu_als.data.shards.plan import Parts
from gpu_als.data.shards.read_stage import ENTRIES, load_rows
from gpu_als.data.shards.records import SIDES
from gpu_als.data.shards.task import Task
from gpu_als.progress import ProgressBar

__all__ = ["all_parts", "part_limit", "runs_of", "sort_out"]

_QUICKLY_SORTED = 1 << 21
_MANY_PARTS = 256


def sort_out(task: Task, journal: Journal) -> None:
    """Give the entries their rows and columns, and put them into the files of their parts."""
    path = task.work / ENTRIES
    if not path.exists() or path.stat().st_size != journal.entries_bytes:
        raise changed(path)
    rows = load_rows(task)
    parts = all_parts(task, rows)
    runs = runs_of(task, journal)
    for side in SIDES:
        runs[side].clear()
    find_user, find_item = (rows[side].lookup() for side in SIDES)
    bar = ProgressBar(
        show=task.show_progress, total=journal.entries_bytes, desc="sorting", unit="B",
        unit_scale=True,
    )  # fmt: skip
    with bar:
        for n_bytes, (users, items, values) in read_blocks(path):
            pair = find_user(users), find_item(items)
            for side, (row, column) in zip(SIDES, (pair, pair[::-1]), strict=True):
                keys = row * np.int64(parts[side].n_columns) + column
                runs[side].append(keys, values, parts[side].of_keys(keys))
            bar.update(n_bytes)
    for side in SIDES:
        runs[side].sync()
        n_parts = len(parts[side].firsts)
        journal.entries_of_parts[side] = [runs[side].n_entries(part) for part in range(n_parts)]
    journal.stage = "build"
    journal.save(task.work)


def all_parts(task: Task, rows: dict[str, Rows]) -> dict[str, Parts]:
    """Return the parts of both orientations: the same whenever asked for the same task."""
    limit = part_limit(task, rows)
    counts = [rows[side].counts for side in SIDES]
    return {
        side: Parts.of(mine, len(others), limit)
        for side, mine, others in zip(SIDES, counts, counts[::-1], strict=True)
    }


def part_limit(task: Task, rows: dict[str, Rows]) -> int:
    """Return how many entries a part has at most: half of what can be sorted at once."""
    possible = task.budget.entries_at_once(sum(rows[side].nbytes for side in SIDES))
    # Few at once are sorted in the cache of the processor; but then there are many files.
    n_entries = int(rows["users"].counts.sum())
    return min(possible, max(_QUICKLY_SORTED, n_entries // _MANY_PARTS)) // 2


def runs_of(task: Task, journal: Journal) -> dict[str, Runs]:
    """Return the files of the parts of both orientations."""
    return {side: Runs(task.work, side, np.dtype(journal.value_dtype)) for side in SIDES}
