"""Ratings: validated matrices, ids, files and splits."""

from gpu_als.data.interactions import Interactions
from gpu_als.data.readers import read_interactions
from gpu_als.data.splits import (
    k_fold_splits,
    leave_k_out_split,
    temporal_split,
    train_test_split,
)

__all__ = [
    "Interactions",
    "k_fold_splits",
    "leave_k_out_split",
    "read_interactions",
    "temporal_split",
    "train_test_split",
]
