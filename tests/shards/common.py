"""Small data in shards, and shards as one matrix again."""

from contextlib import contextmanager

import pytest
import scipy.sparse as sp
from hypothesis import settings

from gpu_als.data import text_rows
from gpu_als.data.shards import convert, existing_entries, numbering, sources, writer
from gpu_als.data.shards.budget import Budget

SMALL = 160 << 20
"""Memory for small conversions, in bytes."""
BY_HYPOTHESIS = settings(max_examples=25)


def stacked(shards):
    """Return all rows of one orientation; they must follow one another without a gap."""
    loaded = [shard.load() for shard in shards]
    assert [start for start, _, _ in loaded] == [0, *(stop for _, stop, _ in loaded[:-1])]
    assert all(part.shape[0] == stop - start for start, stop, part in loaded)
    return sp.vstack([part for _, _, part in loaded], format="csr")


def same(left, right):
    """Tell whether two matrices store the same entries, zeros included."""
    left, right = sp.csr_matrix(left), sp.csr_matrix(right)
    left.sort_indices()
    right.sort_indices()
    return left.shape == right.shape and all(
        (getattr(left, name) == getattr(right, name)).all() if left.nnz == right.nnz else False
        for name in ("indptr", "indices", "data")
    )


def holds(matrix, expected):
    """Tell whether a sharded matrix holds the expected one, in both orientations."""
    return (
        matrix.shape == expected.shape
        and matrix.nnz == expected.nnz
        and same(stacked(matrix.users), expected)
        and same(stacked(matrix.items), expected.T.tocsr())
    )


def converted(sources, folder, **options):
    """Convert quietly and with little memory."""
    return convert(sources, folder, show_progress=False, **{"memory": SMALL} | options)


@contextmanager
def cut_small(entries=7, rows=3):
    """Make conversions read few rows and sort few entries at a time, as if there were no memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "entries_at_once", lambda self, id_bytes: 2 * entries)
        patch.setattr(sources, "_MOST_ROWS", rows)
        patch.setattr(sources, "_LEAST_ROWS", rows)
        patch.setattr(sources, "_MOST_TEXT", 8 * rows)
        patch.setattr(sources, "_LEAST_TEXT", 8 * rows)
        patch.setattr(text_rows, "_ROWS_AT_ONCE", rows)
        patch.setattr(numbering, "_PENDING", rows)
        patch.setattr(existing_entries, "_ROWS_AT_ONCE", rows)
        patch.setattr(writer, "_ROWS_AT_ONCE", rows)
        yield
