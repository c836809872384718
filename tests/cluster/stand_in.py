"""Workers that preload this module have a stand-in for a GPU, and for NCCL."""

from contextlib import ExitStack

import fake_cupy
import fake_nccl

from gpu_als import backends
from gpu_als.distributed import nccl

PATIENCE_SECONDS = nccl._PATIENCE_SECONDS

_installed = ExitStack()
_usual = dict(vars(fake_nccl.NcclCommunicator)), fake_cupy.Device.pci_bus_id


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
    fake_nccl.available = True
    nccl._PATIENCE_SECONDS = PATIENCE_SECONDS


def broadcasts():
    return fake_nccl.broadcasts


def cannot_connect(reason):
    def fail(*_):
        raise fake_nccl.NcclError(reason)

    fake_nccl.NcclCommunicator.__init__ = fail


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
