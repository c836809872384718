"""What workers hold, as Dask sees it."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from dask.sizeof import sizeof

from cluster.common import DATA
from gpu_als.backends import BackendChoice
from gpu_als.data.shards import ShardedMatrix
from gpu_als.distributed.tasks import make_part
from gpu_als.objectives import Implicit
from gpu_als.training_data import InMemory, OnDisk

CHOICE = BackendChoice("numpy", 1)


def part_of(rows):
    return make_part(rows, "users", Implicit(0.1, 2.0), 8, CHOICE, DATA.shape)


@pytest.fixture
def in_memory():
    return part_of(InMemory(DATA).rows()[0])


@pytest.fixture
def on_disk(tmp_path: Path):
    matrix = ShardedMatrix.from_matrix(DATA, tmp_path / "m", shard_bytes=900)
    return part_of(OnDisk(matrix, np.dtype(np.float32)).rows[0])


def test_rows_in_memory_have_their_size_and_those_on_disk_none(in_memory, on_disk):
    assert 8 * DATA.nnz < sizeof(in_memory) < 8 * DATA.nnz + 8 * DATA.shape[0] + 500
    assert sizeof(on_disk) < 500


@pytest.mark.parametrize("kind", ["in_memory", "on_disk"])
def test_what_is_prepared_for_a_device_stays_behind_when_rows_move(request, kind):
    """And is prepared again where they come to."""
    part = request.getfixturevalue(kind)
    fresh = len(pickle.dumps(part))
    backend = CHOICE.get()
    before = list(part.problems(backend, np.dtype(np.float32)))
    assert len(pickle.dumps(part)) == fresh
    after = list(pickle.loads(pickle.dumps(part)).problems(backend, np.dtype(np.float32)))
    for (place, one), (same_place, other) in zip(before, after, strict=True):
        assert place == same_place
        np.testing.assert_array_equal(one.rows.values, other.rows.values)
