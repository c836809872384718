"""Named arrays in a ``.npz`` file: written whole or not at all, and read without trusting it."""

from __future__ import annotations

import errno
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpu_als.data.atomic import replacing
from gpu_als.errors import InputError, ModelFileError

__all__ = ["read_arrays", "write_arrays"]

# Deflate cannot do better than 1032:1; a member that claims more is lying about its size.
_LARGEST_RATIO = 1032
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
_SUPPORTED_KINDS = "biufUS"


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
        with replacing(_with_suffix(file)) as unfinished, unfinished.open("xb") as stream:
            _write_archive(stream, prepared)
    elif isinstance(file, io.TextIOBase) or not hasattr(file, "write"):
        raise InputError(
            f"file: found {type(file).__name__}; pass a path or a file opened in binary mode ('wb')"
        )
    else:
        _write_archive(file, prepared)


def read_arrays(file: str | os.PathLike[str] | BinaryIO) -> dict[str, np.ndarray]:
    """Read every array of a ``.npz`` file.

    Nothing is unpickled, and no more memory is used than the file can account for.

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
        If the file is truncated, corrupted, not a ``.npz`` file, or holds pickled objects.
    FileNotFoundError
        If there is no such file.
    """
    if not isinstance(file, str | os.PathLike):
        if not hasattr(file, "seek"):
            raise InputError(f"file must be a path or a binary file object, not {file!r}")
        return _read_archive(file, str(getattr(file, "name", "the file object")))
    path = Path(file)
    if not path.exists() and _with_suffix(path).exists():
        path = _with_suffix(path)
    with path.open("rb") as stream:
        return _read_archive(stream, str(path))


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
        if len({member.filename for member in members}) < len(members):
            raise ModelFileError(f"{name}: two arrays have the same name; write the file again")
        return {
            member.filename.removesuffix(".npy"): _read_member(archive, member, name)
            for member in members
        }


@contextmanager
def _damage_reported(name: str) -> Iterator[None]:
    try:
        yield
    except ModelFileError:
        raise
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
    if info.file_size > _LARGEST_RATIO * (info.compress_size + 1):
        raise ModelFileError(
            f"{where} claims {info.file_size} bytes in {info.compress_size}; the file is corrupted "
            "or hostile, do not use it"
        )
    with archive.open(info) as member:
        shape, fortran_order, dtype = _read_header(member, where)
        n_bytes = math.prod(shape) * dtype.itemsize
        present = info.file_size - member.tell()
        if n_bytes != present or (dtype.itemsize == 0 and math.prod(shape) > 0):
            raise ModelFileError(
                f"{where} claims shape {shape} of {dtype} but holds {present} bytes; the file is "
                "corrupted, write it again"
            )
        buffer = bytearray(n_bytes)
        # Reading past the last byte is what makes zipfile compare the checksum.
        if _read_into(member, memoryview(buffer)) != n_bytes or member.read(1):
            raise ModelFileError(f"{where} is truncated; write it again")
    array = np.frombuffer(buffer, dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _read_header(member: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(member)
    else:
        raise ModelFileError(f"{where} has unknown .npy version {version}; write it again")
    if dtype.hasobject:
        raise ModelFileError(
            f"{where} holds pickled objects, which are never loaded; save numbers or strings only"
        )
    if dtype.kind not in _SUPPORTED_KINDS or any(size < 0 for size in shape):
        raise ModelFileError(
            f"{where} has type {dtype} and shape {shape}, which no model has; write it again"
        )
    return shape, fortran_order, dtype


def _read_into(member: Any, view: memoryview) -> int:
    done = 0
    while done < len(view):
        count = member.readinto(view[done : done + (1 << 24)])
        if not count:
            break
        done += count
    return done
