"""Users, items and ratings from delimited text, all of a file at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpu_als.data.columns import Column, Triples
from gpu_als.data.text_blocks import read_text_blocks
from gpu_als.data.text_layout import Header

__all__ = ["read_table"]

_CHUNK_BYTES = 1 << 24


def read_table(
    path: Path,
    suffix: str,
    *,
    user: Column,
    item: Column,
    rating: Column,
    delimiter: str | None,
    header: Header,
) -> Triples:
    """Read a text file; ``suffix`` is that of ``path`` without ``.gz``.

    The other arguments are those of :func:`~gpu_als.data.readers.read_triples`.
    """
    users, items = _Ids(), _Ids()
    ratings = []
    for _, block in read_text_blocks(
        path, suffix, user=user, item=item, rating=rating, delimiter=delimiter, header=header,
        chunk_bytes=_CHUNK_BYTES,
    ):  # fmt: skip
        users.add(block.users)
        items.add(block.items)
        if block.ratings is not None:
            ratings.append(block.ratings)
    return Triples(users.all(), items.all(), np.concatenate(ratings) if ratings else None)


class _Ids:
    """Ids that are int64 until one turns out not to be an integer, and texts from then on."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._seen: dict[str, str] = {}  # so that equal ids are one object in memory

    def add(self, ids: np.ndarray) -> None:
        self._parts.append(self._shared(ids.tolist()) if ids.dtype == object else ids)

    def all(self) -> np.ndarray:
        if any(part.dtype == object for part in self._parts):
            self._parts = [
                part if part.dtype == object else self._shared(list(map(str, part.tolist())))
                for part in self._parts
            ]
        return np.concatenate(self._parts)

    def _shared(self, texts: list[str]) -> np.ndarray:
        return np.array(list(map(self._seen.setdefault, texts, texts)), dtype=object)
