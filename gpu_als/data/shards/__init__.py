"""Matrices on disk in shards, for data larger than memory."""

from gpu_als.data.shards.conversion import append, convert
from gpu_als.data.shards.reader import ShardedMatrix
from gpu_als.data.shards.shard import Shard

__all__ = ["Shard", "ShardedMatrix", "append", "convert"]
