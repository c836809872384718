"""Ratings: validated matrices, ids, files and splits."""

from gpu_als.data.interactions import Interactions
from gpu_als.data.readers import read_interactions
from gpu_als.data.splits import leave_k_out_split, train_test_split

__all__ = ["Interactions", "leave_k_out_split", "read_interactions", "train_test_split"]
