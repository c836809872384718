"""Named arrays in a ``.npz`` file: written whole or not at all, and read without trusting it."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpu_als.data.atomic import replacing
from gpu_als.errors import InputError, ModelFileError

__all__ = ["check_names", "read_arrays", "to_factors", "write_arrays"]

_LARGEST_RATIO = 100
"""Deflate reaches 1032:1. What numbers and ids need is far below; a bomb is close to it."""
_ALWAYS_ALLOWED = 1 << 26
"""Bytes that arrays may need however small the file: a few zeros compress beyond every ratio."""
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, OverflowError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
_SUPPORTED_KINDS = "biufUS"
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': '([<>|][" + _SUPPORTED_KINDS + r"O]\d{0,9})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), \}\s*"
)
"""The one form in which NumPy writes such arrays; nothing else is evaluated."""


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
        with replacing(_with_suffix(file)) as stream:
            _write_archive(stream, prepared)
    elif isinstance(file, io.TextIOBase) or not hasattr(file, "write"):
        raise InputError(
            f"file: found {type(file).__name__}; pass a path or a file opened in binary mode ('wb')"
        )
    else:
        _write_archive(file, prepared)


def read_arrays(file: str | os.PathLike[str] | BinaryIO) -> dict[str, np.ndarray]:
    """Read every array of a ``.npz`` file.

    Nothing is unpickled or evaluated. What the file says is compared with its length before memory
    is taken: arrays stored as they are need no more than the file, and compressed ones are refused
    above 100 times the file's length (or 64 MB, if that is more).

    Parameters
    ----------
    file : path or binary file object
        Where a path does not exist but the path with ``.npz`` does, that is read.

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
    if not isinstance(file, str | os.PathLike):
        if isinstance(file, io.TextIOBase) or not hasattr(file, "seek"):
            raise InputError(
                f"file: found {type(file).__name__}; pass a path or a file opened in binary mode "
                "('rb')"
            )
        return _read_archive(file, str(getattr(file, "name", "the file object")))
    path = Path(file)
    if not path.exists() and _with_suffix(path).exists():
        path = _with_suffix(path)
    with path.open("rb") as stream:
        return _read_archive(stream, str(path))


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


def _with_suffix(file: str | os.PathLike[str]) -> Path:
    path = os.fspath(file)
    return Path(path if path.endswith(".npz") else path + ".npz")


def _as_array(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value, order="C")
    if array.dtype.kind not in _SUPPORTED_KINDS:
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
            with archive.open(member, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, array, allow_pickle=False)


def _read_archive(stream: BinaryIO, name: str) -> dict[str, np.ndarray]:
    with _damage_reported(name), zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        # A flipped bit in the directory can hide the entries that follow.
        if len(members) != _number_of_members(stream, len(archive.comment)):
            raise ModelFileError(f"{name}: its directory is damaged; restore it from a backup")
        _check_members(members, stream.seek(0, os.SEEK_END), name)
        return {
            member.filename.removesuffix(".npy"): _read_member(archive, member, name)
            for member in members
        }


def _number_of_members(stream: BinaryIO, comment_bytes: int) -> int:
    """Return how many members the last record of a .zip file says there are."""
    stream.seek(-22 - comment_bytes, os.SEEK_END)
    return int.from_bytes(stream.read(22)[10:12], "little")


def _check_members(members: list[zipfile.ZipInfo], file_bytes: int, name: str) -> None:
    """Refuse, before any of it is read, what no .npz file holds or would take too much memory."""
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ModelFileError(f"{name}: two arrays have the same name; write the file again")
    for member in members:
        if not member.filename.endswith(".npy") or set(member.filename) & {"/", "\\"}:
            raise ModelFileError(
                f"{name}: holds {member.filename!r}, which is no array; this is no .npz file"
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelFileError(
                f"{name}: array {member.filename!r} is compressed in a way that NumPy does not "
                "use; write it with numpy.savez"
            )
    if sum(member.compress_size for member in members) > file_bytes:
        raise ModelFileError(f"{name}: its arrays overlap; the file is hostile, do not use it")
    claimed = sum(member.file_size for member in members)
    if claimed > max(_LARGEST_RATIO * file_bytes, _ALWAYS_ALLOWED):
        raise ModelFileError(
            f"{name}: {file_bytes} bytes claim to hold arrays of {claimed}, more than "
            f"{_LARGEST_RATIO} times as much; if you trust the file, write it without compression "
            "(numpy.savez)"
        )


@contextmanager
def _damage_reported(name: str) -> Iterator[None]:
    try:
        yield
    except ModelFileError:
        raise
    except MemoryError as error:
        raise ModelFileError(
            f"{name}: its arrays do not fit into memory; read it on a machine with more"
        ) from error
    except (*_DAMAGED, OSError) as error:
        # zipfile seeks wherever a corrupted directory points; other OSErrors are the disk's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ModelFileError(
            f"{name}: truncated, corrupted or not a .npz file ({error}); write it again or restore "
            "it from a backup"
        ) from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    where = f"{name}: array {info.filename!r}"
    with archive.open(info) as member:
        shape, fortran_order, dtype = _read_header(member, where)
        n_bytes = math.prod(shape) * dtype.itemsize
        present = info.file_size - member.tell()
        if n_bytes != present:
            raise ModelFileError(
                f"{where} claims shape {shape} of {dtype} but holds {present} bytes; the file is "
                "corrupted, write it again"
            )
        buffer = bytearray(n_bytes)
        # Reading the last byte is what makes zipfile compare the checksum.
        if _read_into(member, memoryview(buffer)) != n_bytes:
            raise ModelFileError(f"{where} is truncated; write it again")
    array = np.frombuffer(buffer, dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _read_header(member: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    magic = member.read(len(_MAGIC) + 2)
    if magic[:-2] != _MAGIC:
        raise ModelFileError(f"{where} is no .npy file of version 1.0; write it again")
    header = member.read(int.from_bytes(magic[-2:], "little")).decode("latin1")
    found = _HEADER.fullmatch(header)
    if found is None:
        raise ModelFileError(
            f"{where} has the header {header[:100]!r}, which no array of numbers or strings has; "
            "write it again"
        )
    descr, order, sizes = found.groups()
    if descr[1] == "O":
        raise ModelFileError(
            f"{where} holds pickled objects, which are never loaded; save numbers or strings only"
        )
    shape = tuple(int(size) for size in sizes.split(",") if size.strip())
    return shape, order == "True", np.dtype(descr)


def _read_into(member: Any, view: memoryview) -> int:
    done = 0
    while done < len(view):
        count = member.readinto(view[done : done + (1 << 24)])
        if not count:
            break
        done += count
    return done
