"""Clusters of one, two and four worker processes, each of them for the whole session."""

import pytest

from cluster.common import leave_alone, local_cluster, wait_until


@pytest.fixture(scope="session", params=[1, 2, 4], ids="{} workers".format)
def workers(request):
    """Yield a client."""
    with local_cluster(request.param) as client:
        yield client


@pytest.fixture
def client(workers):
    """Yield a client, and see afterwards that the workers hold nothing any more."""
    yield workers
    workers.run(leave_alone)
    wait_until(lambda: not any(workers.has_what().values()), 10)
