"""What workers hold, as Dask sees it."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from dask.sizeof import sizeof

from cluster.common import DATA
from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Implicit
from gpu_als.core.solvers import Cholesky
from gpu_als.core.stats import HalfSweepStats
from gpu_als.dask import tasks
from gpu_als.dask.tasks import HowToSolve, Piece, make_part, solve, sum_grams
from gpu_als.data.shards import ShardedMatrix
from gpu_als.train.training_data import InMemory, OnDisk

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


def test_grams_are_added_up_and_stay_as_they_are():
    """A worker that repeats the sum, after a loss, is given the same ones again."""
    grams = [np.full((2, 2), size) for size in (1.0, 10.0, 100.0)]
    for _ in range(2):
        np.testing.assert_array_equal(sum_grams(grams), np.full((2, 2), 111.0))
    assert [each[0, 0] for each in grams] == [1.0, 10.0, 100.0]
    np.testing.assert_array_equal(sum_grams(grams[:1]), grams[0])


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

    def solve_in_the_middle(backend, part, solved, held, gram, how):
        inside.append(part)
        most.append(len(inside))
        if part == "first":
            threads.append(
                threading.Thread(target=solve, args=("second", piece, [piece], None, how))
            )
            threads[0].start()
            assert awaited.wait(60)
        inside.remove(part)
        awaited.set()  # in case it need not wait
        return piece

    piece = Piece(np.ones((2, 3)), None, HalfSweepStats(), 0, "nowhere")
    how = HowToSolve(Cholesky(), False, CHOICE, False)
    monkeypatch.setattr(tasks, "_one_at_a_time", Watched())
    monkeypatch.setattr(tasks, "_solve", solve_in_the_middle)
    solve("first", piece, [piece], None, how)
    threads[0].join(60)
    assert most == [1, 1]
