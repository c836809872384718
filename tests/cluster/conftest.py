"""Clusters of one, two and four worker processes, each for all tests that want it."""

import signal
from contextlib import ExitStack
from functools import cache

import dask
import pytest

from cluster.common import leave_alone, local_cluster, wait_until


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """Take back what nannies set in the environment of this process before they start workers.

    Programs that later tests start would see it, the settings of malloc among them.
    """
    for name in (*dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def can_be_interrupted():
    """Have SIGINT raise KeyboardInterrupt, which jobs in the background ignore."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="session")
def cluster_of():
    """Yield a function that returns a client of so many workers."""
    with ExitStack() as stack:
        yield cache(lambda n_workers: stack.enter_context(local_cluster(n_workers)))


@pytest.fixture(params=[1, 2, 4], ids="{} workers".format)
def workers(request, cluster_of):
    """Return a client."""
    return cluster_of(request.param)


@pytest.fixture
def client(workers):
    """Yield a client, and see afterwards that the workers hold nothing any more."""
    yield workers
    workers.run(leave_alone)
    wait_until(lambda: not any(workers.has_what().values()), 10)
