"""GPUs, or stand-ins for them, and states that tests only read."""

import pytest
from test_cupy_backend import cupy_backend  # noqa: F401  (a fixture)

from checkpoint.common import explicit, implicit, state


@pytest.fixture(scope="package")
def saved(tmp_path_factory):
    """Return files of the state after three iterations, by what made them."""
    return {make: state(tmp_path_factory.mktemp("state"), make()) for make in (explicit, implicit)}
