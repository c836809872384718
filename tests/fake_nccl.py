"""A stand-in for ``cupy.cuda.nccl`` between processes of one machine, over files in a folder.

As with NCCL, calls do not come back while a member of the group is missing, unless they are
aborted by another thread. That the real module has every name used is tested apart.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
import time
import uuid
from pathlib import Path

available = True
NCCL_UINT8 = 1
IDENTITY_BYTES = 128

broadcasts = 0
"""That this process has taken part in."""
_grouped = threading.local()


class NcclError(RuntimeError):
    """What CuPy raises for NCCL."""


def get_unique_id() -> bytes:
    identity = uuid.uuid4().hex.encode().ljust(IDENTITY_BYTES, b"\0")
    _folder(identity).mkdir()
    return identity


def _folder(identity: bytes) -> Path:
    name = identity.rstrip(b"\0").decode()
    return Path(tempfile.gettempdir()) / f"fake_nccl-{os.getuid()}-{name}"


def groupStart() -> None:
    _grouped.calls = []


def groupEnd() -> None:
    for call in _grouped.calls:
        call()
    _grouped.calls = None


class NcclCommunicator:
    """A member of a group."""

    error: Exception | None = None
    """What members find when they look for errors."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        assert len(commId) == IDENTITY_BYTES
        self._folder, self._rank, self._number = _folder(commId), rank, 0
        self._aborted = False
        (self._folder / f"member-{rank}").touch(exist_ok=False)
        for other in range(ndev):
            self._wait_for(self._folder / f"member-{other}")

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        assert datatype == NCCL_UINT8
        assert stream != 0
        self._number += 1
        file = self._folder / f"{self._number}-{root}"

        def call() -> None:
            global broadcasts
            broadcasts += 1
            if root == self._rank:
                unfinished = file.with_suffix(".unfinished")
                unfinished.write_bytes(ctypes.string_at(sendbuff, count))
                unfinished.rename(file)
            self._wait_for(file)
            sent = file.read_bytes()
            assert len(sent) == count
            ctypes.memmove(recvbuff, sent, count)

        _grouped.calls.append(call)

    def check_async_error(self) -> None:
        if self.error is not None:
            raise self.error

    def abort(self) -> None:
        self._aborted = True

    def _wait_for(self, file: Path) -> None:
        while not file.exists():
            if self._aborted:
                raise NcclError("aborted")
            time.sleep(0.001)
