"""Factors that stay on the GPU, with the few methods that programs call on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.core.memory import CONVERTED_ROWS
from gpu_als.core.problem import Array

__all__ = ["Matrix", "rowwise_matmul"]


class Matrix:
    """An array on the GPU that NumPy can read.

    It has what ``implicit.gpu.Matrix`` has: ``to_numpy()``, ``shape``, rows by index, and the CUDA
    array interface, through which CuPy, PyTorch and Numba share it without a copy. Beyond that
    ``numpy.asarray`` copies it to the host.

    Parameters
    ----------
    array : cupy.ndarray
    """

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers."""
        return np.dtype(self.array.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How other libraries find the memory."""
        found: dict[str, Any] = self.array.__cuda_array_interface__
        return found

    def to_numpy(self) -> np.ndarray:
        """Copy to the host."""
        host: np.ndarray = self.array.get()
        return host

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Copy to the host; see :func:`numpy.asarray`."""
        if copy is False:
            raise ValueError("factors on the GPU have to be copied to become a NumPy array")
        return self.to_numpy().astype(dtype or self.dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Matrix:
        """Return some rows, on the GPU."""
        return Matrix(self.array[rows])

    def __repr__(self) -> str:
        return f"Matrix(shape={self.shape}, dtype={self.dtype}, on the GPU)"


def rowwise_matmul(xp: Any, rows: Array, matrix: Array) -> Array:
    """Return ``rows @ matrix``, block by block.

    All blocks have one shape and layout: cuBLAS picks its kernel by these, and kernels differ in
    the order in which they add.
    """
    out = xp.empty((len(rows), matrix.shape[1]), rows.dtype)
    for start in range(0, len(rows), CONVERTED_ROWS):
        block = xp.ascontiguousarray(rows[start : start + CONVERTED_ROWS])
        n = len(block)
        if n < CONVERTED_ROWS:
            block = xp.zeros((CONVERTED_ROWS, rows.shape[1]), rows.dtype)
            block[:n] = rows[start:]
        out[start : start + n] = (block @ matrix)[:n]
    return out
