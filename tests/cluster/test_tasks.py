"""What workers hold, as Dask sees it."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from dask.sizeof import sizeof

from cluster.common import DATA
from gpu_als.backends import BackendChoice
from gpu_als.core.basis import SideRidge
from gpu_als.core.objectives import Implicit
from gpu_als.core.solvers import Cholesky
from gpu_als.core.stats import HalfSweepStats
from gpu_als.dask import tasks
from gpu_als.dask.tasks import FactorBlock, HowToSolve, make_side, solve
from gpu_als.data.shards import ShardedMatrix
from gpu_als.train.training_data import as_training_data

CHOICE = BackendChoice("numpy", 1)


def users_of(source):
    rows = as_training_data(source, name="data", dtype=np.dtype(np.float32)).users
    return make_side("users", Implicit(0.1, 2.0), rows, 8, SideRidge.of(0.1))


@pytest.fixture
def in_memory():
    return users_of(DATA)


@pytest.fixture
def on_disk(tmp_path: Path):
    return users_of(ShardedMatrix.from_matrix(DATA, tmp_path / "m", shard_bytes=900))


def test_rows_in_memory_have_their_size_and_those_on_disk_none(in_memory, on_disk):
    assert 8 * DATA.nnz < sizeof(in_memory) < 8 * DATA.nnz + 8 * DATA.shape[0] + 500
    assert sizeof(on_disk) < 500


@pytest.mark.parametrize("kind", ["in_memory", "on_disk"])
def test_what_is_prepared_for_a_device_stays_behind_when_rows_move(request, kind):
    """And is prepared again where they come to."""
    side = request.getfixturevalue(kind)
    fresh = len(pickle.dumps(side))
    side.load(CHOICE.get(), None)
    before = list(side.problems())
    assert len(pickle.dumps(side)) < fresh + 100
    moved = pickle.loads(pickle.dumps(side))
    assert not moved.is_loaded
    moved.load(CHOICE.get(), None)
    after = list(moved.problems())
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.tau, other.tau)


def test_a_worker_solves_for_one_task_at_a_time(monkeypatch):
    """A second one, begun in the middle of the first, waits for it, however many threads it has."""
    awaited, inside, most, threads = threading.Event(), [], [], []

    class Watched:
        """A lock that tells when somebody is about to wait for it."""

        lock = threading.Lock()

        def __enter__(self):
            if not self.lock.acquire(blocking=False):
                awaited.set()
                self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    def solve_in_the_middle(backend, part, solved, held, how):
        inside.append(part)
        most.append(len(inside))
        if part == "first":
            threads.append(threading.Thread(target=solve, args=("second", block, [block], how)))
            threads[0].start()
            assert awaited.wait(60)
        inside.remove(part)
        awaited.set()  # in case it need not wait
        return block

    block = FactorBlock(np.ones((2, 3)), HalfSweepStats(), 0, "nowhere")
    how = HowToSolve(Cholesky(), False, CHOICE, (2, 2))
    monkeypatch.setattr(tasks, "_one_at_a_time", Watched())
    monkeypatch.setattr(tasks, "_solve", solve_in_the_middle)
    solve("first", block, [block], how)
    threads[0].join(60)
    assert most == [1, 1]
