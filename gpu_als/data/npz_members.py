"""The arrays of a ``.npz`` archive, read without trusting it."""

from __future__ import annotations

import errno
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from gpu_als.errors import ModelFileError

__all__ = ["ARRAY_KINDS", "opened_archive", "read_header", "read_into", "read_member"]

ARRAY_KINDS = "biufUS"
"""The kinds of types that need no pickling."""
_LARGEST_RATIO = 100
"""Deflate reaches 1032:1. What numbers and ids need is far below; a bomb is close to it."""
_ALWAYS_ALLOWED = 1 << 26
"""Bytes that arrays may need however small the file: a few zeros compress beyond every ratio."""
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, OverflowError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
_SMALLEST_MAPPED = 1 << 16
"""Bytes of an array that is worth a mapping of its own."""
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': '([<>|][" + ARRAY_KINDS + r"O]\d{0,9})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), \}\s*"
)
"""The one form in which NumPy writes such arrays; nothing else is evaluated."""


@contextmanager
def opened_archive(stream: BinaryIO, name: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive after checking, without reading it, that it is one of arrays that fit.

    Parameters
    ----------
    stream : binary file object
    name : str
        The file, in messages.

    Raises
    ------
    ModelFileError
        If it is not, or whenever damage shows while it is open.
    """
    with _damage_reported(name), zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        # A flipped bit in the directory can hide the entries that follow.
        if len(members) != _number_of_members(stream, len(archive.comment)):
            raise ModelFileError(f"{name}: its directory is damaged; restore it from a backup")
        _check_members(members, stream.seek(0, os.SEEK_END), name)
        yield archive


def read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, *, mapped: bool = False
) -> np.ndarray:
    """Return one array; ``name`` is that of the file, in messages.

    With ``mapped`` a large one that was written without compression stays in the file.
    """
    where = f"{name}: array {info.filename!r}"
    with archive.open(info) as member:
        shape, fortran_order, dtype = read_header(member, where)
        n_bytes = math.prod(shape) * dtype.itemsize
        present = info.file_size - member.tell()
        if n_bytes != present:
            raise ModelFileError(
                f"{where} claims shape {shape} of {dtype} but holds {present} bytes; the file is "
                "corrupted, write it again"
            )
        if mapped and n_bytes >= _SMALLEST_MAPPED and info.compress_type == zipfile.ZIP_STORED:
            assert archive.filename is not None
            begin = _begin(archive, info) + info.file_size - n_bytes
            order: Any = "F" if fortran_order else "C"
            return np.memmap(archive.filename, dtype, "r", begin, shape, order)
        buffer = bytearray(n_bytes)
        # Reading the last byte is what makes zipfile compare the checksum.
        if read_into(member, memoryview(buffer)) != n_bytes:
            raise ModelFileError(f"{where} is truncated; write it again")
    array = np.frombuffer(buffer, dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _begin(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return where in the file the bytes of a member begin, behind its local header."""
    assert archive.fp is not None
    archive.fp.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", archive.fp.read(4))
    return info.header_offset + 30 + int(name) + int(extra)


def read_header(member: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the head of an array: its shape, whether it is in Fortran order, and its type."""
    magic = member.read(len(_MAGIC) + 2)
    if magic[:-2] != _MAGIC:
        raise ModelFileError(f"{where} is not a .npy file of version 1.0; write it again")
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


def read_into(member: Any, view: memoryview) -> int:
    """Fill memory from an open array, and return how many bytes there were."""
    done = 0
    while done < len(view):
        count = member.readinto(view[done : done + (1 << 24)])
        if not count:
            break
        done += count
    return done


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
                f"{name}: holds {member.filename!r}, which is not an array; this is not a .npz file"
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
