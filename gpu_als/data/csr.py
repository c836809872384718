"""Validated CSR matrices and row numbers.

Everything behind the public doors works on the matrix :func:`as_csr` returns: sorted indices, no
duplicates, finite values of one float type. Checked once, here, so that solvers and kernels can
trust their input.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.errors import IdRangeError, InputError, NotFiniteError

__all__ = [
    "as_csr",
    "check_csr",
    "check_index_array",
    "check_magnitude",
    "partition_rows",
    "real_numbers",
    "to_host",
]

# Solvers add up many squares of values in the same type.
_LARGEST_MAGNITUDE = {np.dtype(np.float32): 1e12, np.dtype(np.float64): 1e100}
_MATRIX_REMEDY = "pass a 2-D NumPy array or a scipy.sparse matrix"
_REBUILD = "rebuild it, for example with scipy.sparse.coo_matrix((data, (row, col)), shape=shape)"


def as_csr(
    matrix: Any,
    *,
    name: str = "ratings",
    dtype: Any = np.float32,
    require_finite: bool = True,
) -> sp.csr_matrix:
    """Return ``matrix`` as a validated CSR matrix.

    Parameters
    ----------
    matrix : sparse matrix or array, 2-D array, list of lists, or object with ``user_items``
        Shape (users, items). In dense input, and inside the blocks and diagonals of BSR and DIA
        input, zero means "missing". In every other sparse format a stored zero is an observed
        value of 0 and stays. CuPy arrays and sparse matrices are copied to the host.
    name : str
        What the caller calls this argument; used in messages.
    dtype : numpy.float32 or numpy.float64
        Type of the values returned.
    require_finite : bool
        Whether NaN and infinite values are errors.

    Returns
    -------
    scipy.sparse.csr_matrix
        Sorted indices, duplicates summed, values of type ``dtype``. It shares memory with
        ``matrix`` where that is already in this form, so treat it as read-only. ``matrix`` itself
        is never changed.

    Raises
    ------
    InputError
        For an unsupported container or value type, a dimension of size zero, corrupt index
        arrays, values that are not finite, or values too large for ``dtype``.
    """
    target = _float_dtype(dtype)
    if type(matrix) is sp.csr_matrix and matrix.dtype == target and _is_in_order(matrix):
        return matrix
    source = _as_matrix(matrix, name)
    if 0 in source.shape:
        raise InputError(
            f"{name}: found shape {tuple(source.shape)}; pass at least one user and one item"
        )
    csr = _sparse_to_csr(source, name) if sp.issparse(source) else _dense_to_csr(source)
    if require_finite:
        _check_finite(csr, name)
    if not csr.has_canonical_format:
        # A copy, because sum_duplicates works in place and the arrays may be the caller's.
        csr = csr.astype(_summable(csr.dtype), copy=True)
        csr.sum_duplicates()
        if require_finite:
            _check_finite(csr, name)  # the sums may overflow
    return _cast(csr, target, name)


_FEW = 1 << 16
"""Entries looked at in a way that is quick for few and takes memory for many."""


def _is_in_order(matrix: sp.csr_matrix) -> bool:
    """Return whether all is well with a small matrix; one that is not takes the long way.

    For the rows of one user that way takes longer than to find the user's best items.
    """
    (n_rows, n_columns), data = matrix.shape, matrix.data
    indptr, indices = matrix.indptr, matrix.indices
    nnz = len(indices)
    if not (0 < nnz == len(data) < _FEW and len(indptr) == n_rows + 1 < _FEW):
        return False
    if indptr[0] != 0 or indptr[-1] != nnz or indices.min() < 0 or indices.max() >= n_columns:
        return False
    rises = indices[1:] > indices[:-1]
    if n_rows > 1:
        begins = indptr[1:-1]  # where columns may begin anew
        if (indptr[1:] < indptr[:-1]).any():
            return False
        rises[begins[(begins > 0) & (begins < nnz)] - 1] = True
    return bool(rises.all() and np.isfinite(data).all())


def check_csr(matrix: sp.csr_matrix, *, name: str) -> None:
    """Refuse a matrix that :func:`as_csr` would refuse or change, without a copy of anything.

    Parameters
    ----------
    matrix : csr_matrix of floats
    name : str
        What the caller calls this argument; used in messages.

    Raises
    ------
    InputError
        If index arrays are corrupt, the columns of a row do not rise, or values are not finite.
    """
    _check_structure(matrix, name)
    if not matrix.has_canonical_format:
        raise InputError(f"{name}: the columns of a row do not rise")
    _check_finite(matrix, name)


def check_magnitude(matrix: sp.csr_matrix, *, dtype: Any, name: str, first_row: int = 0) -> None:
    """Refuse values whose squares would leave the range of ``dtype``.

    Parameters
    ----------
    matrix : csr_matrix
        A matrix from :func:`as_csr`.
    dtype : numpy.float32 or numpy.float64
        Type the training computes in. The limits are 1e12 and 1e100.
    name : str
        What the caller calls this argument; used in the message.
    first_row : int
        The number of the matrix's first row, where it is a part of another.

    Raises
    ------
    InputError
        If any absolute value exceeds the limit.
    """
    target = _float_dtype(dtype)
    limit = _LARGEST_MAGNITUDE[target]
    lowest, highest = _extremes(matrix.data)
    if max(-lowest, highest) <= limit:
        return
    bad = np.abs(matrix.data) > limit
    too_large = _describe(matrix, bad, f"above {limit:g} in magnitude", first_row)
    remedy = "rescale the ratings"
    if target == np.float32:
        remedy += " or pass dtype=numpy.float64"
    raise InputError(f"{name}: {too_large}; squares would overflow {target}; {remedy}")


def check_index_array(ids: Any, size: int, *, name: str) -> np.ndarray:
    """Return row numbers as a 1-D int64 array after checking their type and range.

    Parameters
    ----------
    ids : int or array-like of int, shape (n,)
        Row numbers, from 0. Negative numbers do not count from the end; they are errors.
    size : int
        Number of rows there are.
    name : str
        What the caller calls this argument; used in messages.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    InputError
        If ``ids`` is not one-dimensional or not made of integers.
    IdRangeError
        If a number is negative or not below ``size``.
    """
    if type(ids) is int and 0 <= ids < size:
        return np.array([ids], np.int64)  # quickly, since many calls are about one row
    array = np.atleast_1d(_from_lists(to_host(ids), name))
    if array.ndim != 1:
        raise InputError(f"{name}: found {array.ndim} dimensions; pass a 1-D array of integers")
    if array.size == 0:
        return np.empty(0, np.int64)  # an empty list has no type of its own
    if array.dtype.kind not in "iu":
        raise InputError(
            f"{name}: found values of type {array.dtype}; pass integer row numbers, for example "
            "numpy.asarray(ids, dtype=numpy.int64)"
        )
    outside = array[(array < 0) | (array >= size)]
    if outside.size:
        raise IdRangeError(
            f"{name}: found {outside.size} number(s) out of range, the first {outside[0]}; pass "
            f"integers from 0 to {size - 1}"
        )
    return array.astype(np.int64, copy=False)


def real_numbers(values: Any, *, name: str) -> np.ndarray:
    """Return an array of real numbers of whatever shape, on the host.

    Raises
    ------
    InputError
        There are other values, or lists of different lengths.
    """
    array = np.asarray(_from_lists(to_host(values), name))
    if array.dtype == object:  # as frames with missing values have
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            array = array.astype(np.float64)
    _refuse_unreal(array.dtype, name)
    return array


def to_host(value: Any) -> Any:
    """Copy a CuPy array or sparse matrix to the host; return anything else as it is.

    CuPy is recognised by what its objects can do, so that nothing here imports it. Frames, series
    and mappings have a ``get`` as well, but theirs looks something up.
    """
    looks_up = any(hasattr(value, attribute) for attribute in ("columns", "keys", "index"))
    on_device = all(hasattr(value, attribute) for attribute in ("get", "shape", "dtype"))
    return value.get() if on_device and not looks_up else value


def _float_dtype(dtype: Any) -> np.dtype:
    try:
        target = np.dtype(dtype)
    except TypeError:
        target = None
    if target not in _LARGEST_MAGNITUDE:
        raise InputError(f"dtype: found {dtype!r}; pass numpy.float32 or numpy.float64")
    return target


def _as_matrix(matrix: Any, name: str) -> Any:
    """Return a 2-D ndarray or sparse matrix of real numbers, whatever container it came in."""
    if _is_table(matrix):
        raise InputError(
            f"{name}: found a table of columns ({type(matrix).__name__}); "
            "use Interactions.from_frame"
        )
    matrix = to_host(getattr(matrix, "user_items", matrix))
    if isinstance(matrix, np.ma.MaskedArray):
        raise InputError(f"{name}: found a masked array; pass {name}.filled(0): zero means missing")
    if isinstance(matrix, list | tuple):
        matrix = _from_lists(matrix, name)
    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)):
        raise InputError(f"{name}: found {type(matrix).__name__}; {_MATRIX_REMEDY}")
    if matrix.ndim != 2:
        raise InputError(f"{name}: found {matrix.ndim} dimension(s); {_MATRIX_REMEDY}")
    _refuse_unreal(matrix.dtype, name)
    return matrix


def _refuse_unreal(dtype: np.dtype, name: str) -> None:
    if dtype.kind not in "biuf":
        raise InputError(
            f"{name}: found values of type {dtype}; convert them to real numbers first, "
            f"for example with {name}.astype(numpy.float32)"
        )


def _is_table(matrix: Any) -> bool:
    if sp.issparse(matrix):
        return False  # DOK matrices have keys too
    fields = isinstance(matrix, np.ndarray) and matrix.dtype.names is not None
    return fields or hasattr(matrix, "columns") or hasattr(matrix, "keys")


def _from_lists(rows: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError:
        raise InputError(
            f"{name}: found nested lists of different lengths; pass a NumPy array"
        ) from None


def _dense_to_csr(dense: np.ndarray) -> sp.csr_matrix:
    rows, columns = np.nonzero(dense)
    values = np.asarray(dense)[rows, columns]
    # SciPy has no float16, so only the values found are converted.
    values = values.astype(_summable(dense.dtype), copy=False)
    return sp.csr_matrix((values, (rows, columns)), shape=dense.shape)


def _sparse_to_csr(source: Any, name: str) -> sp.csr_matrix:
    """Convert any sparse format to CSR without touching ``source``."""
    _check_structure(source, name)
    if source.format == "csr":
        # A fresh matrix around the same arrays: the flags cached on `source` may be out of date.
        arrays = (source.data, source.indices, source.indptr)
        return sp.csr_matrix(arrays, shape=source.shape, copy=False)
    csr = sp.csr_matrix(source.astype(_summable(source.dtype)).tocsr())
    if source.format in ("bsr", "dia"):
        csr.eliminate_zeros()  # these formats pad with zeros
    return csr


def _summable(dtype: np.dtype) -> np.dtype:
    """Return a float type in which adding duplicates neither wraps around nor stays boolean."""
    return dtype if dtype.kind == "f" and dtype.itemsize >= 4 else np.dtype(np.float64)


def _check_structure(source: Any, name: str) -> None:
    """Refuse index arrays that would make SciPy's compiled code read outside them."""
    if source.format == "coo":
        _check_range(source.row, source.shape[0], name, "row indices")
        _check_range(source.col, source.shape[1], name, "column indices")
    elif source.format in ("csr", "csc", "bsr"):
        _check_compressed(source, name)


def _check_compressed(source: Any, name: str) -> None:
    block = source.blocksize if source.format == "bsr" else (1, 1)
    n_major, n_minor = source.shape[0] // block[0], source.shape[1] // block[1]
    if source.format == "csc":
        n_major, n_minor = n_minor, n_major
    indptr, indices = source.indptr, source.indices
    if len(indptr) != n_major + 1:
        problem = f"indptr has {len(indptr)} entries, not {n_major + 1}"
    elif indptr[0] != 0 or not (indptr[1:] >= indptr[:-1]).all():
        problem = "indptr does not rise from 0"
    elif not indptr[-1] == len(indices) == len(source.data):
        problem = f"indptr ends at {indptr[-1]}, for {len(indices)} indices"
    else:
        _check_range(indices, n_minor, name, "indices")
        return
    raise InputError(f"{name}: found a corrupt {source.format} matrix ({problem}); {_REBUILD}")


def _check_range(indices: np.ndarray, size: int, name: str, what: str) -> None:
    if len(indices) == 0:
        return
    lowest, highest = indices.min(), indices.max()
    if lowest < 0 or highest >= size:
        raise InputError(
            f"{name}: found {what} from {lowest} to {highest} where only 0 to {size - 1} exist; "
            f"{_REBUILD}"
        )


def _extremes(data: np.ndarray) -> tuple[float, float]:
    """Return the smallest and largest value (both NaN if any is) without temporary arrays."""
    if data.size == 0:
        return 0.0, 0.0
    with np.errstate(invalid="ignore"):
        return float(data.min()), float(data.max())


def _all_finite(data: np.ndarray) -> bool:
    return bool(np.isfinite(_extremes(data)).all())


def _check_finite(csr: sp.csr_matrix, name: str) -> None:
    if csr.dtype.kind != "f" or _all_finite(csr.data):
        return
    found = _describe(csr, ~np.isfinite(csr.data), "that are NaN or infinite")
    raise NotFiniteError(f"{name}: {found}; remove these entries or give them finite ratings")


def _cast(csr: sp.csr_matrix, target: np.dtype, name: str) -> sp.csr_matrix:
    if csr.dtype == target:
        return csr
    with np.errstate(over="ignore"):
        data = csr.data.astype(target)
    if not _all_finite(data):
        overflowed = np.isfinite(csr.data) & ~np.isfinite(data)
        if overflowed.any():
            found = _describe(csr, overflowed, f"too large for {target}")
            raise InputError(f"{name}: {found}; rescale the ratings or pass dtype=numpy.float64")
    return sp.csr_matrix((data, csr.indices, csr.indptr), shape=csr.shape, copy=False)


def _describe(csr: sp.csr_matrix, bad: np.ndarray, what: str, first_row: int = 0) -> str:
    """Say how many stored values ``bad`` marks, and where the first one is."""
    first = int(np.argmax(bad))
    row = int(np.searchsorted(csr.indptr, first, side="right")) - 1
    return (
        f"found {np.count_nonzero(bad)} value(s) {what}, the first ({csr.data[first]:g}) "
        f"at (row, column) ({first_row + row}, {csr.indices[first]})"
    )


def partition_rows(
    counts: np.ndarray, most_bytes: int, entry_bytes: int, row_bytes: int
) -> tuple[int, ...]:
    """Cut rows into runs of at most so many bytes, or of one row.

    Parameters
    ----------
    counts : ndarray of int, shape (n_rows,)
        Entries of each row.
    most_bytes, entry_bytes, row_bytes : int
        What a run may take; what an entry takes, and a row besides.

    Returns
    -------
    tuple of int, length runs + 1
        The first row of each run, and the number of rows.
    """
    before = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts.astype(np.int64) * entry_bytes + row_bytes, out=before[1:])
    bounds = [0]
    while bounds[-1] < len(counts):
        stop = int(np.searchsorted(before, before[bounds[-1]] + most_bytes, side="right")) - 1
        bounds.append(max(stop, bounds[-1] + 1))
    return tuple(bounds)
