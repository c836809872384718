"""What users have already, from a file of ratings or from a folder of shards."""

from __future__ import annotations

import argparse
import os

import numpy as np
import scipy.sparse as sp

from gpu_als.cli.models import AnyModel
from gpu_als.cli.options import reading_arguments
from gpu_als.cli.scoring import Seen, pairs_matrix, rows_of
from gpu_als.data.ids import IdMap
from gpu_als.data.readers import read_triples
from gpu_als.data.shards import ShardedMatrix

__all__ = ["SeenInShards", "seen_items"]


def seen_items(args: argparse.Namespace, model: AnyModel, source: str) -> Seen:
    """Return what the model's users have in a file or folder."""
    if os.path.isdir(source):
        return SeenInShards(ShardedMatrix.open(source), model)
    pairs = read_triples(source, **reading_arguments(args))[:2]
    rows, columns, known = rows_of(model, *pairs)
    return pairs_matrix(model, rows[known], columns[known])


class SeenInShards:
    """The items of users in shards, in the rows and columns of a model.

    Only the rows of the users asked for are read.

    Parameters
    ----------
    matrix : ShardedMatrix
        Its users and items are found by their ids; they may be others than those of the model.
    model : AlternatingLeastSquares or ExplicitALS
    """

    def __init__(self, matrix: ShardedMatrix, model: AnyModel) -> None:
        self._matrix, self._n_items = matrix, len(model.item_factors)
        users, items = model.user_ids, matrix.item_ids
        if users is None:
            users = np.arange(len(model.user_factors))
        if items is None:
            items = np.arange(matrix.shape[1])
        known = IdMap(matrix.user_ids, matrix.shape[0])
        self._rows = known.rows(users, name="users", unknown="drop")
        self._columns = model.item_index(items, unknown="drop")

    def __getitem__(self, users: np.ndarray) -> sp.csr_matrix:
        """Return a matrix of shape (n, items of the model) with a 1 for each item a user has."""
        rows = self._rows[users]
        known = np.flatnonzero(rows >= 0)
        entries = self._matrix.rows(rows[known])
        places = np.repeat(known, np.diff(entries.indptr)), self._columns[entries.indices]
        kept = places[1] >= 0
        ones = np.ones(int(np.count_nonzero(kept)), np.float32)
        pairs = places[0][kept], places[1][kept]
        return sp.csr_matrix((ones, pairs), shape=(len(users), self._n_items))
