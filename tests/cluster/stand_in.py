"""Workers that preload this module have a stand-in for a GPU, and for NCCL."""

from contextlib import ExitStack
from pathlib import Path

import fake_cupy
import fake_nccl

from cluster.common import wait_until
from gpu_als import backends
from gpu_als.dask import nccl, tasks

TIMEOUT_SECONDS = nccl._TIMEOUT_SECONDS

_installed = ExitStack()
_usual = dict(vars(fake_nccl.NcclCommunicator)), fake_cupy.Device.pci_bus_id
_get_unique_id, _make_side = fake_nccl.get_unique_id, tasks.make_side


def dask_setup(worker):
    _installed.enter_context(fake_cupy.installed())
    from gpu_als.backends.cupy.backend import CupyBackend

    backend = CupyBackend(fused=False)
    backend.batch_elements = 20_000  # several batches and long rows on small data
    backends._cupy_backend = lambda precision="float32": backend


# What tests do to workers


def leave_alone():
    methods, fake_cupy.Device.pci_bus_id = _usual
    for name in ("__init__", "broadcast", "error"):
        setattr(fake_nccl.NcclCommunicator, name, methods[name])
    fake_nccl.available, fake_nccl.get_unique_id = True, _get_unique_id
    tasks.make_side = _make_side
    nccl._TIMEOUT_SECONDS = TIMEOUT_SECONDS


def broadcasts():
    return fake_nccl.broadcasts


def cannot_connect(reason):
    def fail(*_):
        raise fake_nccl.NcclError(reason)

    fake_nccl.NcclCommunicator.__init__ = fail


def cannot_begin(reason):
    def fail():
        raise fake_nccl.NcclError(reason)

    fake_nccl.get_unique_id = fail


def make_sides_when(there):
    """Wait for a file before each side."""

    def wait_and_make(*what):
        wait_until(Path(there).exists)
        return _make_side(*what)

    tasks.make_side = wait_and_make


def be_a_member_of_what_is_no_more():
    place = "a key that Dask has forgotten"
    nccl._member = nccl._Member("of old", place, backends._cupy_backend(), 0)


def have_error(reason):
    """Have NCCL see an error from now on."""
    fake_nccl.NcclCommunicator.error = fake_nccl.NcclError(reason)


def have_no_nccl():
    fake_nccl.available = False


def keep_silent():
    """Take part in groups, but send and receive nothing."""

    def wait_for_ever(self, *_):
        fake_nccl._grouped.calls.append(lambda: self._wait_for(self._folder / "never"))

    fake_nccl.NcclCommunicator.broadcast = wait_for_ever


def share_a_gpu():
    fake_cupy.Device.pci_bus_id = "0000:1"
