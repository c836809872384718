"""Work that is prepared in a thread while its predecessor is being used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["one_ahead"]

T = TypeVar("T")


def one_ahead(makers: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield what each function returns; the next one runs in a thread in the meantime.

    Nothing is kept: while one result is in use, one more is in memory or being made.
    """
    with ThreadPoolExecutor(1) as thread:
        pending: Future[T] | None = None
        for make in makers:
            following = thread.submit(make)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
