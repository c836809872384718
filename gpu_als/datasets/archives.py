"""One file inside a ``.zip`` or ``.tar.gz``, read where it is and without trusting the archive.

Nothing is unpacked to disk: names are only compared, so none of them leads anywhere.
"""

from __future__ import annotations

import errno
import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from gpu_als.errors import ReadError

__all__ = ["ArchiveMember"]

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,  # NotImplementedError among them
    OSError,
)
_BUFFER_BYTES = 1 << 20
_TAR_BLOCK = 512
_TAR_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


@dataclass(frozen=True)
class ArchiveMember:
    """A file inside an archive. It has what :func:`~gpu_als.data.text_table.read_table` needs.

    Parameters
    ----------
    archive : Path
        A ``.zip`` or ``.tar.gz`` file.
    name : str
        Exactly as the archive spells it, folders included.
    largest : int
        Bytes beyond which the file is refused. In a ``.tar.gz`` they bound what lies before it too.
    """

    archive: Path
    name: str
    largest: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def suffix(self) -> str:
        """The suffix of the file, not of the archive."""
        return PurePosixPath(self.name).suffix

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the bytes as a stream; ``mode`` is always "rb".

        Raises
        ------
        ReadError
            Here or while reading: if the archive is damaged, or the file is missing, there twice,
            too large, encrypted or not a regular file.
        """
        find = _find_in_zip if self.archive.suffix == ".zip" else _find_in_tar
        with ExitStack() as stack:
            with _damage_reported(self):
                stream, size = find(self, stack)
            raw = _Bytes(stream, size, self, stack.pop_all())
        return io.BufferedReader(raw, _BUFFER_BYTES)


class _Bytes(io.RawIOBase):
    """The ``size`` bytes that come next in ``stream``, and never one more."""

    def __init__(self, stream: Any, size: int, member: ArchiveMember, resources: ExitStack) -> None:
        self._stream = stream
        self._left = size
        self._member = member
        self._resources = resources

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._left)
        with _damage_reported(self._member):
            data = self._stream.read(wanted)
            if wanted and not data:
                raise EOFError(f"{self._left} bytes are missing")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._resources.close()
        super().close()


def _find_in_zip(member: ArchiveMember, stack: ExitStack) -> tuple[Any, int]:
    archive = stack.enter_context(zipfile.ZipFile(member.archive))
    # `filename` would not do: zipfile cuts it at a NUL byte and changes separators.
    found = [info for info in archive.infolist() if info.orig_filename == member.name]
    if len(found) != 1:
        raise _refusal(member, f"the archive has {len(found)} files of this name, not one")
    info = found[0]
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):  # 0: not made on Unix
        raise _refusal(member, "it is a link or device, not a regular file")
    if info.flag_bits & 1:
        raise _refusal(member, "it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refusal(member, f"it is compressed by method {info.compress_type}, not by deflate")
    _check_size(member, info.file_size)
    return stack.enter_context(archive.open(info)), info.file_size


def _find_in_tar(member: ArchiveMember, stack: ExitStack) -> tuple[Any, int]:
    # Header by header and not with tarfile.open, which takes as much memory as an extended header
    # asks for. Such headers are passed over: names they are needed for are not looked for here.
    stream = stack.enter_context(gzip.GzipFile(member.archive))
    passed = 0
    while True:
        block = stream.read(_TAR_BLOCK)
        if not any(block):
            raise _refusal(member, "the archive has no file of this name")
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        _check_size(member, info.size)
        if info.name == member.name:
            break
        size = 0 if info.type in _TAR_WITHOUT_DATA else info.size
        n_blocks = -(-size // _TAR_BLOCK)
        passed += (1 + n_blocks) * _TAR_BLOCK
        _check_size(member, passed)
        _skip(stream, n_blocks * _TAR_BLOCK)
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise _refusal(member, "it is a link, device or sparse file, not a regular file")
    return stream, info.size


def _skip(stream: Any, count: int) -> None:
    while count:
        data = stream.read(min(count, _BUFFER_BYTES))
        if not data:
            raise EOFError("the archive ends too soon")
        count -= len(data)


def _check_size(member: ArchiveMember, size: int) -> None:
    if not 0 <= size <= member.largest:
        raise _refusal(member, f"the archive claims {size} bytes, at most {member.largest} may be")


def _refusal(member: ArchiveMember, reason: str) -> ReadError:
    return ReadError(
        f"{member}: {reason}; this is not the published archive, delete it and download it again"
    )


@contextmanager
def _damage_reported(member: ArchiveMember) -> Iterator[None]:
    try:
        yield
    except ReadError:
        raise
    except _DAMAGED as error:
        # zipfile seeks wherever a damaged directory points; other errors with a number are the
        # disk's.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ReadError(
            f"{member}: the archive is damaged ({error}); delete it and download it again"
        ) from error
