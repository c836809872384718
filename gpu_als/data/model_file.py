"""Named arrays in a ``.npz`` file: written whole or not at all, and read without trusting it."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from gpu_als.data.atomic import replacing
from gpu_als.data.npz_members import ARRAY_KINDS, opened_archive, read_member
from gpu_als.errors import InputError, ModelFileError, check_choice

__all__ = ["check_names", "npz_path", "read_arrays", "to_factors", "write_arrays"]

_LOCAL_HEADER, _ZIP64_FIELD = 30, 20
"""Bytes that a .zip file has before a member, besides its name."""
_PADDING_FIELD = 0xD935
"""The number that other programs give to fields which pad."""


def write_arrays(file: str | os.PathLike[str] | BinaryIO, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a ``.npz`` file that ``numpy.load`` reads too.

    The file appears under its name only once it is complete and on disk. When anything fails,
    what was there before stays.

    Parameters
    ----------
    file : path or binary file object
        ``.npz`` is appended to a path that does not end in it.
    arrays : mapping of str to ndarray, number or str

    Raises
    ------
    InputError
        If a value would need pickling, or ``file`` is open in text mode.
    OSError
        If the file cannot be written.
    """
    prepared = {name: _as_array(value, name) for name, value in arrays.items()}
    if isinstance(file, str | os.PathLike):
        with replacing(npz_path(file)) as stream:
            _write_archive(stream, prepared)
    elif isinstance(file, io.TextIOBase) or not hasattr(file, "write"):
        raise InputError(
            f"file: found {type(file).__name__}; pass a path or a file opened in binary mode ('wb')"
        )
    else:
        _write_archive(file, prepared)


def read_arrays(
    file: str | os.PathLike[str] | BinaryIO, *, mmap_mode: Literal["r"] | None = None
) -> dict[str, np.ndarray]:
    """Read every array of a ``.npz`` file.

    Nothing is unpickled or evaluated. What the file says is compared with its length before memory
    is taken: arrays stored as they are need no more than the file, and compressed ones are refused
    above 100 times the file's length (or 64 MB, if that is more).

    Parameters
    ----------
    file : path or binary file object
        Where a path does not exist but the path with ``.npz`` does, that is read.
    mmap_mode : {"r"}, optional
        Map large arrays of a path into memory, read-only, instead of reading them: their pages are
        read when they are used, and shared by processes. Their checksums are not compared.

    Returns
    -------
    dict of str to ndarray
        Scalars and strings come back as arrays of shape ().

    Raises
    ------
    ModelFileError
        If the file is truncated, corrupted, not a ``.npz`` file, holds pickled objects, or does
        not fit into memory.
    FileNotFoundError
        If there is no such file.
    """
    check_choice(mmap_mode, (None, "r"), name="mmap_mode")
    if not isinstance(file, str | os.PathLike):
        if mmap_mode is not None:
            raise InputError("mmap_mode needs a path; pass one, or mmap_mode=None")
        if isinstance(file, io.TextIOBase) or not hasattr(file, "seek"):
            raise InputError(
                f"file: found {type(file).__name__}; pass a path or a file opened in binary mode "
                "('rb')"
            )
        return _read_archive(file, str(getattr(file, "name", "the file object")))
    path = Path(file)
    if not path.exists() and npz_path(path).exists():
        path = npz_path(path)
    with path.open("rb") as stream:
        return _read_archive(stream, str(path), mapped=mmap_mode is not None)


def check_names(
    arrays: Collection[str], *, needed: Collection[str], known: Collection[str], where: str
) -> None:
    """Refuse a file that lacks something, or holds what this version does not know.

    Parameters
    ----------
    arrays : names found in the file
    needed, known : names
        What must be there, and what may be there.
    where : str
        The file, in messages.

    Raises
    ------
    ModelFileError
    """
    if lost := sorted(set(needed) - set(arrays)):
        raise ModelFileError(f"{where}: the parameters {lost} are missing")
    if strange := sorted(set(arrays) - set(known)):
        raise ModelFileError(
            f"{where}: unknown parameters or arrays {strange}; a newer gpu_als may know them"
        )


def to_factors(array: np.ndarray, dtype: Any, where: str) -> np.ndarray:
    """Return an array of a file in the dtype and layout of a model, after checking its values.

    Parameters
    ----------
    array : array of floats
    dtype : numpy.float32 or numpy.float64
    where : str
        What it is, in messages.

    Raises
    ------
    ModelFileError
        If it holds NaN, inf, or values that are too large for ``dtype``.
    """
    with np.errstate(over="ignore"):
        factors = np.asarray(array, dtype, order="C")
    if not np.isfinite(factors).all():
        raise ModelFileError(f"{where} holds NaN, inf, or values beyond {np.dtype(dtype)}")
    return factors


def npz_path(file: str | os.PathLike[str]) -> Path:
    """Return the path of a model file: ``.npz`` is appended to a bare name."""
    path = os.fspath(file)
    return Path(path if path.endswith(".npz") else path + ".npz")


def _as_array(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value, order="C")
    if array.dtype.kind not in ARRAY_KINDS:
        raise InputError(
            f"arrays: {name!r} has values of type {array.dtype}, which would need pickling; "
            "convert it to numbers or strings first"
        )
    return array


def _write_archive(stream: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # ZipInfo has a fixed date, so that equal arrays give equal files.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.extra = _padding(archive, member)
            with archive.open(member, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, array, allow_pickle=False)


def _padding(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return an extra field behind which a member begins at a multiple of 64 bytes.

    NumPy makes the head of an array a multiple of 64 bytes, too, so that its numbers are aligned
    where the file is mapped into memory.
    """
    assert archive.fp is not None
    before = archive.fp.tell() + _LOCAL_HEADER + len(member.filename.encode()) + _ZIP64_FIELD
    return struct.pack("<HH", _PADDING_FIELD, n := -(before + 4) % 64) + bytes(n)


def _read_archive(stream: BinaryIO, name: str, *, mapped: bool = False) -> dict[str, np.ndarray]:
    with opened_archive(stream, name) as archive:
        return {
            member.filename.removesuffix(".npy"): read_member(archive, member, name, mapped=mapped)
            for member in archive.infolist()
        }
