"""Columns that int32 cannot number; there are few entries, and the transpose is left out."""

import numpy as np
import pytest
import scipy.sparse as sp

from gpu_als.data.shards import ShardedMatrix
from gpu_als.data.shards.existing_entries import existing_blocks
from gpu_als.data.shards.manifest import Manifest
from gpu_als.data.shards.plan import shard_bounds
from gpu_als.data.shards.writer import writing_side
from shards.common import same, stacked

N_COLUMNS = 2**31 + 5
ROWS = np.array([0, 0, 1, 3, 3])
COLUMNS = np.array([2, 2**31 + 4, 2**31, 0, 2**31 - 1])
SOURCE = sp.csr_matrix((np.arange(1, 6, dtype=np.float32), (ROWS, COLUMNS)), shape=(4, N_COLUMNS))


@pytest.fixture
def wide(tmp_path):
    """Return shards of the rows."""
    (tmp_path / "users").mkdir()
    bounds = shard_bounds(np.diff(SOURCE.indptr), N_COLUMNS, "float32", 60)
    with writing_side(tmp_path / "users", 0, bounds, N_COLUMNS, np.asarray) as writer:
        writer.add(ROWS * N_COLUMNS + COLUMNS, SOURCE.data)
    return ShardedMatrix(
        tmp_path,
        Manifest(
            version=0, shape=SOURCE.shape, nnz=SOURCE.nnz, duplicates="sum", source="",
            value_type="float32", codes=(), ids={"users": None, "items": None},
            shards={"users": tuple(writer.finished), "items": ()},
        ),
    )  # fmt: skip


def test_they_are_stored_in_64_bits_and_loaded(wide):
    assert len(wide.users) == 2
    assert np.fromfile(wide.folder / "users" / "0-000000.indices", "<i8").tolist() == [
        2, 2**31 + 4, 2**31,
    ]  # fmt: skip
    assert same(stacked(wide.users), SOURCE)


def test_rows_are_taken_out(wide):
    assert same(wide.rows([3, 2, 0, 3]), SOURCE[[3, 2, 0, 3]])


def test_entries_are_read_in_pieces(wide):
    """What appending does with them first."""
    blocks = list(existing_blocks(wide, 2))
    found = [np.concatenate(arrays).tolist() for arrays in list(zip(*blocks, strict=True))[1:]]
    assert found == [ROWS.tolist(), COLUMNS.tolist(), SOURCE.data.tolist()]
