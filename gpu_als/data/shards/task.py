"""What one conversion is to do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_als.data.shards.budget import Budget
from gpu_als.data.shards.folder import WORK
from gpu_als.data.shards.plan import check_shard_bytes
from gpu_als.data.shards.reader import ShardedMatrix
from gpu_als.data.shards.sources import Source
from gpu_als.data.shards.values import check_value_type

__all__ = ["Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """The arguments of :func:`~gpu_als.data.shards.convert`, checked.

    Attributes
    ----------
    folder : Path
    sources : tuple of Source
    existing : ShardedMatrix or None
        What is in the folder already, to be appended to.
    duplicates, value_type, lossy, shard_bytes, memory, show_progress

    Raises
    ------
    InputError
        If an option is out of range.
    """

    folder: Path
    sources: tuple[Source, ...]
    existing: ShardedMatrix | None = None
    duplicates: str
    value_type: str
    lossy: bool
    shard_bytes: int
    memory: int
    show_progress: bool

    def __post_init__(self) -> None:
        check_value_type(self.value_type, lossy=self.lossy)
        check_shard_bytes(self.shard_bytes)
        _ = self.budget

    @cached_property
    def budget(self) -> Budget:
        """The memory, shared out."""
        return Budget(
            self.memory, max((source.library_bytes for source in self.sources), default=0)
        )

    @property
    def work(self) -> Path:
        """The folder of what is needed only until the shards are complete."""
        return self.folder / WORK

    @property
    def version(self) -> int:
        """The version that is to be written."""
        return 0 if self.existing is None else self.existing.manifest.version + 1

    @property
    def kept(self) -> frozenset[str]:
        """The files of what is in the folder already."""
        return frozenset() if self.existing is None else self.existing.manifest.names()

    def identity(self, version: int) -> dict[str, Any]:
        """Return what identifies this conversion, by names that messages use."""
        return {
            "files": [source.fingerprint for source in self.sources],
            "columns or form of text": [source.reading for source in self.sources],
            "duplicates": self.duplicates,
            "value type": [self.value_type, self.lossy],
            "size of shards": self.shard_bytes,
            "memory": self.memory,
            "generation": version,  # as digests in manifests have it
            "appending": self.existing is not None,
        }

    def digest(self, version: int) -> str:
        """Return a digest of the identity."""
        identity = json.dumps(self.identity(version), sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()
