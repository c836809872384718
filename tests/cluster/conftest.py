"""A cluster for the tests of this folder, with as many workers as a test wants."""

import signal
from contextlib import ExitStack
from functools import cache

import dask
import pytest

from cluster.common import interrupted, leave_alone, local_cluster, wait_until


def pytest_keyboard_interrupt():
    """Have fixtures wait no more for workers, which Ctrl-C reaches too."""
    interrupted.set()


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


@pytest.fixture(scope="package")
def cluster_of():
    """Yield a function that returns a client of so many workers, which end with these tests."""
    with ExitStack() as stack:
        yield cache(lambda n_workers: stack.enter_context(local_cluster(n_workers)))


@pytest.fixture
def client(request, cluster_of):
    """Yield a client of two workers, or of a module's WORKERS, which hold nothing afterwards."""
    client = cluster_of(getattr(request.module, "WORKERS", 2))
    yield client
    client.run(leave_alone)
    wait_until(lambda: not any(client.has_what().values()))
