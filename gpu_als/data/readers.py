"""Ratings from files: delimited text, NumPy archives and Matrix Market."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.io
import scipy.sparse as sp

from gpu_als.data.columns import Column, Triples, array_names, refuse_columns
from gpu_als.data.formats import format_of
from gpu_als.data.interactions import Interactions, check_duplicates, keep_last
from gpu_als.data.matrix_market_blocks import damage_reported
from gpu_als.data.model_file import read_arrays
from gpu_als.data.text_layout import Header
from gpu_als.data.text_table import read_table
from gpu_als.errors import InputError, ModelFileError, ReadError

__all__ = ["Triples", "read_interactions", "read_triples"]


def read_interactions(
    path: str | os.PathLike[str],
    *,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    delimiter: str | None = None,
    header: Header = "auto",
    duplicates: Literal["sum", "last"] = "sum",
    dtype: Any = np.float32,
) -> Interactions:
    """Read ratings into a matrix.

    Parameters
    ----------
    path, user, item, rating, delimiter, header
        As in :func:`read_triples`.
    duplicates : {"sum", "last"}
        What becomes of several ratings for one user and item: their sum, or the last one.
    dtype : numpy.float32 or numpy.float64

    Returns
    -------
    Interactions
        With the ids of the file. A matrix file (``.mtx``, or a matrix in ``.npz``) has no ids, and
        keeps its shape.

    Raises
    ------
    ReadError
        If the file cannot be read or its ratings cannot be used.
    InputError
        If an argument is out of range or names a column that does not exist.
    FileNotFoundError
        If there is no such file.
    """
    check_duplicates(duplicates)
    content = _read(path, user, item, rating, delimiter, header)
    try:
        if isinstance(content, Triples):
            return Interactions.from_triples(*content, duplicates=duplicates, dtype=dtype)
        if duplicates == "last":
            content = keep_last(content)
        return Interactions.from_matrix(content, dtype=dtype)
    except InputError as error:
        raise ReadError(f"{os.fspath(path)}: {error}") from error


def read_triples(
    path: str | os.PathLike[str],
    *,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    delimiter: str | None = None,
    header: Header = "auto",
) -> Triples:
    """Read ratings as one user, item and rating per entry, in the order of the file.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv``, ``.txt``, ``.data``, ``.dat`` or ``.mtx``, each also with ``.gz``, or
        ``.npz``: a file of ``scipy.sparse.save_npz``, or arrays of users, items and ratings.
    user, item, rating : str, int or None
        Name or position, from 0, of a column of a text file; name of an array in ``.npz``. None
        looks for common names, such as "userId", "movie_id" or "score". A text file without such
        names has the user, item and rating in its first three columns. A file without ratings has
        ratings of 1.
    delimiter : str or None
        What separates the columns of a text file. None detects a tab, "::", a comma or blanks.
    header : bool or "auto"
        Whether the first line of a text file names the columns.

    Returns
    -------
    users, items : ndarray of int64 or of str objects, shape (n,)
        int64 where the text of every id is that of an integer, so "007" is a string.
    ratings : ndarray of numbers, shape (n,), or None
        None where the file has no ratings.

    Raises
    ------
    ReadError
        If the file cannot be read. The message gives the line where there is one.
    InputError
        If an argument is out of range or names a column that does not exist.
    FileNotFoundError
        If there is no such file.

    Notes
    -----
    Double quotes group where a single character other than a blank separates columns.
    """
    content = _read(path, user, item, rating, delimiter, header)
    if isinstance(content, Triples):
        return content
    rows, columns = content.row.astype(np.int64), content.col.astype(np.int64)
    return Triples(rows, columns, content.data)


def _read(
    path: str | os.PathLike[str],
    user: Column,
    item: Column,
    rating: Column,
    delimiter: str | None,
    header: Header,
) -> Triples | sp.coo_matrix:
    path = Path(path)
    suffix = format_of(path)
    columns = user, item, rating
    if suffix == ".npz":
        return _read_npz(path, columns)
    if suffix == ".mtx":
        refuse_columns(path, columns)
        with damage_reported(path):
            return sp.coo_matrix(scipy.io.mmread(path))
    return read_table(
        path, suffix, user=user, item=item, rating=rating, delimiter=delimiter, header=header
    )


def _read_npz(path: Path, columns: tuple[Column, ...]) -> Triples | sp.coo_matrix:
    with path.open("rb") as stream:  # opened here so that "x.npz" never means "x.npz.npz"
        try:
            arrays = read_arrays(stream)
        except ModelFileError as error:
            raise ReadError(str(error)) from error
    if "format" in arrays and "shape" in arrays:
        refuse_columns(path, columns)
        return _read_sparse_npz(path)
    users, items, ratings = array_names(path, list(arrays), columns)
    return Triples(arrays[users], arrays[items], None if ratings is None else arrays[ratings])


def _read_sparse_npz(path: Path) -> sp.coo_matrix:
    try:
        matrix = sp.load_npz(path)
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)  # the conversion below trusts the indices
        triples = sp.coo_matrix(matrix)
    except (ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise ReadError(f"{path}: not a sound sparse matrix ({error}); write it again") from error
    if matrix.format in ("bsr", "dia"):
        triples.eliminate_zeros()  # these formats pad with zeros
    return triples
