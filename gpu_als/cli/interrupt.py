"""Ctrl-C during training: finish the iteration first, abort the second time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any, Self

__all__ = ["GracefulInterrupt"]

_NOTICE = "\nfinishing the current iteration; press Ctrl-C again to abort at once\n"


class GracefulInterrupt:
    """A context in which the first SIGINT asks training to stop and the second kills the process.

    Attributes
    ----------
    requested : bool
        Whether SIGINT arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: Any = None

    def __enter__(self) -> Self:
        """Take SIGINT over, unless it is ignored or this is not the main thread."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._former = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Give SIGINT back."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def callback(self, iteration: int, seconds: float, loss: float | None) -> None:
        """End the fit after this iteration if that was asked for."""
        if self.requested:
            from gpu_als.train.loop import StopTraining

            raise StopTraining

    def _on_signal(self, *_: object) -> None:
        self.requested = True
        # Not an exception: the main thread may sit in a long call that would not see one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.write(2, _NOTICE.encode())  # print is not safe in a handler
