"""What holds for all tests."""

import os
import signal
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Small products gain nothing by threads that wait for one another, and ``implicit`` warns of them.
# NumPy is not imported yet.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Examples are the same each time, and machines may be busy.
settings.register_profile(
    "here",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("here")

collect_ignore = [] if find_spec("distributed") else ["cluster"]


def pytest_report_header() -> list[str]:
    """Tell what is not tested at all."""
    return ["Dask is not installed: tests/cluster is left out"] if collect_ignore else []


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let ``-n 2`` send files to processes, whose tests share clusters and compiled kernels.

    They come in the order in which they are found: those with few tests are not always short.
    """
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist, config.option.loadscopereorder = "loadfile", False


_runners: list[int] = []
"""Processes that run files, each in a group of its own with all that it starts."""


def pytest_configure(config: pytest.Config) -> None:
    """Begin a group if this process is one of those."""
    if hasattr(config, "workerinput") and hasattr(os, "setpgid"):
        os.setpgid(0, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Note one of those."""
    _runners.append(node.gateway._rinfo().pid)


def pytest_keyboard_interrupt() -> None:
    """End the groups, which Ctrl-C does not reach, and all that they have started."""
    for runner in _runners:
        with suppress(ProcessLookupError, AttributeError):  # it has ended; there are no groups
            os.killpg(runner, signal.SIGKILL)
