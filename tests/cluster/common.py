"""Small fits, and what is done to workers; the latter runs in their processes."""

import errno
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
from distributed import Client, LocalCluster
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from test_streaming import interactions

from gpu_als import AlternatingLeastSquares, ExplicitALS
from gpu_als.dask import DaskInteractions, tasks
from gpu_als.data.shards import array_files

DATA = interactions()
HELD_OUT = interactions(seed=31)


@contextmanager
def local_cluster(n_workers, **options):
    """Yield a client of worker processes on this machine.

    Dask looks again some time after a worker was lost, and gives it up for good if just then it
    is not there, because it was killed once more.
    """
    options = {"threads_per_worker": 1, "memory_limit": "1 GiB"} | options
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        LocalCluster(n_workers=n_workers, dashboard_address="127.0.0.1:0", **options) as cluster,
        Client(cluster) as client,
    ):
        yield client


def implicit(**params):
    params = {"factors": 8, "iterations": 2, "random_state": 11, "use_cg": False} | params
    return AlternatingLeastSquares(**{"use_gpu": False, "num_threads": 1} | params)


def explicit(**params):
    params = {"factors": 7, "iterations": 2, "random_state": 11, "regularization": 0.05} | params
    return ExplicitALS(**{"backend": "numpy", "num_threads": 1} | params)


def fit(model, data=DATA, **how):
    """Fit, without a progress bar; return the model."""
    model.fit(data, **{"show_progress": False} | how)
    return model


def fit_on(client, model, data=DATA, **how):
    """Fit on a cluster, without a progress bar; return the model."""
    return fit(model, DaskInteractions(client, data), **how)


interrupted = threading.Event()
"""Set once the tests are to end, whose workers may have ended already."""


def wait_until(condition, seconds=200):
    """Wait for something to become true."""
    until = time.monotonic() + seconds
    while not (condition() or interrupted.is_set()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def all_are_back(client, n_workers=2):
    """Wait for so many workers, and until their nannies would not mind if they were killed."""

    def are_back():
        nannies = client.cluster.workers.values()
        running = [nanny for nanny in nannies if nanny.status == Status.running]
        return len(client.nthreads()) == len(running) == len(nannies) == n_workers

    wait_until(are_back)


def difference(found, expected):
    """Return the largest difference of two fits' factors, relative to the largest factor."""
    sides = "user_factors", "item_factors"
    pairs = [(getattr(found, side), getattr(expected, side)) for side in sides]
    assert all(one.dtype == other.dtype for one, other in pairs)
    return max(np.abs(one - other).max() / np.abs(other).max() for one, other in pairs)


# On workers

_solve = tasks._solve
_open_file = array_files.open_file
solved = 0
"""How many tasks this worker has solved or begun to."""


def count_solves(call=None):
    """Count from now on; before each task ``call(number)``, with numbers from 1."""

    def counted(*args, **kwargs):
        global solved
        solved += 1
        if call is not None:
            call(solved)
        return _solve(*args, **kwargs)

    global solved
    solved = 0
    tasks._solve = counted


def number_of_solves():
    return solved


def see_no_folder():
    """Open shards in a folder that is not there."""
    array_files.open_file = lambda folder, record: _open_file(Path(f"{folder}-not-here"), record)


def leave_alone():
    tasks._solve = _solve
    array_files.open_file = _open_file


class DieOnce:
    """Kill this worker when it begins a task, unless there is a file that says one was killed."""

    def __init__(self, number, said):
        self.number, self.said = number, str(said)

    def __call__(self, number):
        if number == self.number:
            try:
                Path(self.said).touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


class RunOutOfMemory:
    """Raise what Python raises, in one task."""

    def __init__(self, number):
        self.number = number

    def __call__(self, number):
        if number == self.number:
            raise MemoryError("no room for 8 TiB")


class FullDisk:
    """Raise what the system does when a worker spills, in one task."""

    def __init__(self, number):
        self.number = number

    def __call__(self, number):
        if number == self.number:
            raise OSError(errno.ENOSPC, "No space left on device")


class Swell:
    """Take memory until killed, in one task and its repetitions."""

    def __init__(self, number):
        self.number, self.taken = number, []

    def __call__(self, number):
        while number >= self.number:
            self.taken.append(np.ones(1 << 20))
            time.sleep(0.005)


class WaitFor:
    """Have a task wait until there is a file, and say that it does."""

    def __init__(self, number, waits, goes_on):
        self.number, self.waits, self.goes_on = number, str(waits), str(goes_on)

    def __call__(self, number):
        if number == self.number:
            Path(self.waits).touch()
            wait_until(Path(self.goes_on).exists)


def pause(dask_worker):
    """Do what Dask does when memory is nearly full."""
    dask_worker.memory_manager.memory_pause_fraction = False  # it would see that it is not
    dask_worker.status = Status.paused


def go_on(dask_worker):
    fraction = dask.config.get("distributed.worker.memory.pause")
    dask_worker.memory_manager.memory_pause_fraction = fraction
    dask_worker.status = Status.running


def forget_fetched(dask_worker):
    dask_worker.transfer_incoming_log.clear()


def fetched_blocks(dask_worker):
    """Return the sizes of the blocks of factors that this worker has fetched from others."""
    return [
        size
        for fetched in dask_worker.transfer_incoming_log
        for key, size in fetched["keys"].items()
        if key.startswith(("solve", "first_block-"))
    ]


# On schedulers


async def _steal(dask_scheduler, tasks):
    stealing = dask_scheduler.extensions["stealing"]
    await (stealing.start() if tasks else stealing.stop())


@contextmanager
def results_stay(client):
    """Let Dask move no task to a worker that has time for it, and drop no copy of a result."""
    client.run_on_scheduler(_steal, tasks=False)
    client.amm.stop()
    try:
        yield
    finally:
        client.amm.start()
        client.run_on_scheduler(_steal, tasks=True)


class CountSolves(SchedulerPlugin):
    """Counts tasks that have solved rows, on whatever worker and however often."""

    name = "count solves"

    def __init__(self):
        self.solves = 0

    def transition(self, key, start, finish, *args, **kwargs):
        self.solves += finish == "memory" and str(key).startswith("solve")
