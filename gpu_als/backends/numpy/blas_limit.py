"""The process's BLAS, held to one thread while threads of ours work."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["single_threaded_blas"]


class _SingleThreadedBlas:
    """A context in which BLAS has one thread, until the last of all threads in it has left.

    The count belongs to the whole process: two fits in two threads that each restored what they
    found could leave it at 1 for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._former: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                counts = [(library, library.num_threads) for library in _libraries()]
                self._former = [(library, count) for library, count in counts if count != 1]
                for library, _ in self._former:
                    _set(library, 1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for library, count in self._former:
                    _set(library, count)


single_threaded_blas = _SingleThreadedBlas()


@cache
def _libraries() -> list[Any]:
    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return found


def _set(library: Any, count: int) -> None:
    library.set_num_threads(count)
    # From version 3.8 on threadpoolctl obeys the first thread that sets a count, and no other
    # until that one lets go; the last to leave may be another than the first to come.
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread()
