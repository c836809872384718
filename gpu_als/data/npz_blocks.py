"""NumPy archives of a sparse matrix or of triples, read some entries at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpu_als.data.columns import Column, Triples, array_names
from gpu_als.data.npz_members import opened_archive, read_header, read_into, read_member
from gpu_als.errors import ModelFileError, ReadError

__all__ = ["npz_shape", "read_npz_blocks"]

_COMPRESSED = {"csr": 0, "csc": 1}


def npz_shape(path: Path) -> tuple[int, int] | None:
    """Return the shape of the sparse matrix in an archive, or None if it holds triples."""
    with _opened(path) as archive:
        return archive.shape() if archive.is_matrix else None


def read_npz_blocks(
    path: Path, *, user: Column, item: Column, rating: Column, rows_at_once: int
) -> Iterator[tuple[int, Triples]]:
    """Read an archive block by block.

    Parameters
    ----------
    path : Path
        A file of ``scipy.sparse.save_npz`` in CSR, CSC or COO format, or arrays of users, items
        and ratings.
    user, item, rating : str or None
        Names of these arrays, if they are not common ones. Not looked at for a matrix.
    rows_at_once : int
        How many entries a block holds.

    Yields
    ------
    position : int
        How many bytes of the file have been read, estimated.
    block : Triples
        Of a matrix row and column numbers, int64.

    Raises
    ------
    ReadError
        If the file is damaged or is neither.
    InputError
        If an argument names an array that does not exist.
    FileNotFoundError
        If there is no such file.
    """
    size = path.stat().st_size
    with _opened(path) as archive:
        if archive.is_matrix:
            blocks = archive.matrix_blocks(rows_at_once)
        else:
            blocks = archive.triple_blocks((user, item, rating), rows_at_once)
        for done, total, block in blocks:
            yield size * done // max(total, 1), block


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    try:
        with path.open("rb") as stream, opened_archive(stream, str(path)) as archive:
            yield _Archive(path, archive)
    except ModelFileError as error:
        raise ReadError(str(error)) from error


class _Archive:
    """An open archive of arrays."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._members = {
            member.filename.removesuffix(".npy"): member for member in archive.infolist()
        }
        self.is_matrix = {"format", "shape"} <= self._members.keys()

    def shape(self) -> tuple[int, int]:
        shape = self._read("shape")
        if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1:
            raise ReadError(f"{self._path}: its shape is not that of a matrix with entries")
        return int(shape[0]), int(shape[1])

    def matrix_blocks(self, rows_at_once: int) -> Iterator[tuple[int, int, Triples]]:
        shape, layout = self.shape(), self._read("format").item()
        name = layout.decode("ascii", "replace") if isinstance(layout, bytes) else str(layout)
        if name == "coo":
            chunks = self._columns(["row", "col", "data"], rows_at_once)
        elif name in _COMPRESSED:
            chunks = self._compressed(shape, _COMPRESSED[name], rows_at_once)
        else:
            raise ReadError(
                f"{self._path}: holds a {name!r:.20} matrix; save it in CSR, CSC or COO format"
            )
        for done, total, (rows, columns, values) in chunks:
            for numbers, n in zip((rows, columns), shape, strict=True):
                if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= n:
                    raise ReadError(
                        f"{self._path}: not a sound sparse matrix (its indices leave the shape "
                        f"{shape}); write it again"
                    )
            numbered = rows.astype(np.int64), columns.astype(np.int64)
            yield done, total, Triples(*numbered, values)

    def triple_blocks(
        self, columns: tuple[Column, ...], rows_at_once: int
    ) -> Iterator[tuple[int, int, Triples]]:
        users, items, ratings = array_names(self._path, list(self._members), columns)
        found = [users, items] if ratings is None else [users, items, ratings]
        for done, total, arrays in self._columns(found, rows_at_once):
            yield done, total, Triples(arrays[0], arrays[1], arrays[2] if arrays[2:] else None)

    def _read(self, name: str) -> np.ndarray:
        if name not in self._members:
            raise ReadError(f"{self._path}: not a sparse matrix (it has no {name!r})")
        return read_member(self._archive, self._members[name], str(self._path))

    def _compressed(
        self, shape: tuple[int, int], major: int, rows_at_once: int
    ) -> Iterator[tuple[int, int, tuple[np.ndarray, ...]]]:
        indptr = self._read("indptr")
        sound = indptr.dtype.kind in "iu" and indptr.shape == (shape[major] + 1,)
        sound = sound and indptr[0] == 0 and bool((indptr[1:] >= indptr[:-1]).all())
        start = 0
        for done, total, (indices, values) in self._columns(["indices", "data"], rows_at_once):
            if not (sound and indptr[-1] == total):
                raise ReadError(
                    f"{self._path}: not a sound sparse matrix (its indptr does not fit); write it "
                    "again"
                )
            majors = np.searchsorted(indptr, np.arange(start, done), side="right") - 1
            start = done
            ends = (majors, indices) if major == 0 else (indices, majors)
            yield done, total, (*ends, values)

    def _columns(
        self, names: list[str], rows_at_once: int
    ) -> Iterator[tuple[int, int, tuple[np.ndarray, ...]]]:
        """Yield entries of several arrays side by side, after how many of how many are done."""
        with ExitStack() as stack:
            arrays = [stack.enter_context(self._stream(name)) for name in names]
            total = arrays[0].length
            if any(array.length != total for array in arrays):
                lengths = ", ".join(f"{n} {a.length}" for n, a in zip(names, arrays, strict=True))
                raise ReadError(f"{self._path}: its arrays differ in length ({lengths})")
            for start in range(0, total, rows_at_once):
                n = min(rows_at_once, total - start)
                yield start + n, total, tuple(array.take(n) for array in arrays)
            for array in arrays:
                array.finish()

    @contextmanager
    def _stream(self, name: str) -> Iterator[_ArrayStream]:
        if name not in self._members:
            raise ReadError(f"{self._path}: not a sparse matrix (it has no {name!r})")
        info = self._members[name]
        with self._archive.open(info) as member:
            yield _ArrayStream(member, info, f"{self._path}: array {name!r}")


class _ArrayStream:
    """A one-dimensional array in an archive, read from its start."""

    def __init__(self, member: Any, info: zipfile.ZipInfo, where: str) -> None:
        shape, _, self._dtype = read_header(member, where)
        self._member, self._where = member, where
        n_bytes = info.file_size - member.tell()
        if (
            len(shape) != 1
            or self._dtype.itemsize * shape[0] != n_bytes
            or not self._dtype.itemsize
        ):
            raise ReadError(
                f"{where} claims shape {shape} of {self._dtype} but holds {n_bytes} bytes; it must "
                "have one dimension"
            )
        self.length = shape[0]

    def take(self, n: int) -> np.ndarray:
        """Return the next ``n`` values."""
        buffer = bytearray(n * self._dtype.itemsize)
        if read_into(self._member, memoryview(buffer)) != len(buffer):
            raise ReadError(f"{self._where} is truncated; write it again")
        return np.frombuffer(buffer, self._dtype)

    def finish(self) -> None:
        """Read past the last byte, which is what makes zipfile compare the checksum."""
        if self._member.read(1):
            raise ReadError(f"{self._where} is longer than its header says; write it again")
