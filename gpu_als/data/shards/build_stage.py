"""The last stage of a conversion: sorts part after part in memory and writes the shards."""

from __future__ import annotations

import numpy as np

from gpu_als.data.shards.entries import changed
from gpu_als.data.shards.journal import Journal
from gpu_als.data.shards.numbering import Rows
from gpu_als.data.shards.plan import shard_bounds
from gpu_als.data.shards.read_stage import ENTRIES, load_rows
from gpu_als.data.shards.records import SIDES
from gpu_als.data.shards.sort_stage import all_parts, part_limit, runs_of
from gpu_als.data.shards.task import Task
from gpu_als.data.shards.values import Encoder
from gpu_als.data.shards.writer import writing_side
from gpu_als.progress import ProgressBar

__all__ = ["build"]


def build(task: Task, journal: Journal) -> None:
    """Write the shards that are not there yet; the journal learns of each that is complete."""
    (task.work / ENTRIES).unlink(missing_ok=True)  # the parts hold all of it
    rows = load_rows(task)
    encoder = Encoder(task.value_type, lossy=task.lossy, codes=journal.codes)
    total = sum(int(rows[side].counts.sum()) for side in SIDES)
    with ProgressBar(
        show=task.show_progress, total=total, desc="writing", unit="entries", unit_scale=True
    ) as bar:
        for side in SIDES:
            _build_side(task, journal, side, rows, encoder, bar)


def _build_side(
    task: Task,
    journal: Journal,
    side: str,
    rows: dict[str, Rows],
    encoder: Encoder,
    bar: ProgressBar,
) -> None:
    parts, runs = all_parts(task, rows)[side], runs_of(task, journal)[side]
    at_once = part_limit(task, rows)
    counts, n_columns = rows[side].counts, parts.n_columns
    bounds = shard_bounds(counts, n_columns, task.value_type, task.shard_bytes)
    with writing_side(
        task.folder / side, task.version, bounds, n_columns, encoder.encode,
        journal.finished[side],
    ) as writer:  # fmt: skip
        first = len(parts.firsts) if writer.complete else parts.of_key(writer.first_key)
        n_entries = journal.entries_of_parts[side]
        bar.update(sum(n_entries[:first]))
        for part in range(first, len(parts.firsts)):
            if runs.n_entries(part) != n_entries[part]:
                raise changed(runs.path(part))
            keys, values = runs.sorted(part, task.duplicates, at_once)
            new = int(np.searchsorted(keys, writer.first_key))  # a killed run got beyond these
            writer.add(keys[new:], values[new:])
            bar.update(n_entries[part])
            if len(writer.finished) > len(journal.finished[side]):
                journal.finished[side] = list(writer.finished)
                journal.codes = list(encoder.codes)
                journal.save(task.work)
                runs.remove(range(first, parts.of_key(writer.first_key)))
    journal.finished[side] = writer.finished
    journal.codes = encoder.codes
    journal.save(task.work)
    runs.remove(range(first, len(parts.firsts)))
