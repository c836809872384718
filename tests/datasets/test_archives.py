"""Of an archive, only the file that was asked for is read, and only if it is what it should be."""

import contextlib
import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.datasets.archives import ArchiveMember
from gpu_als.errors import ReadError

NAME = "set/ratings.csv"
CONTENT = b"".join(b"%d,%d,3.5\n" % (row, row * row) for row in range(20_000))
OTHERS = {"set/README": b"read me", "ratings.csv": b"not this", "set/ratings.csv.bak": b"nor this"}
BLOCK = 512


def zip_of(members, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **({"compression": zipfile.ZIP_DEFLATED} | options)) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def tar_of(members, format=tarfile.USTAR_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=format) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def special(name=NAME, **attributes):
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


@pytest.fixture
def member(tmp_path):
    """Return a function that writes an archive and returns the member of it that is asked for."""

    def write(archive, suffix, largest=1 << 20):
        path = tmp_path / f"set{suffix}"
        path.write_bytes(archive)
        return ArchiveMember(path, NAME, largest)

    return write


def read(member):
    with member.open() as stream:
        return stream.read()


BOTH = pytest.mark.parametrize(
    ("pack", "suffix"), [(zip_of, ".zip"), (tar_of, ".tar.gz")], ids=["zip", "tar"]
)


@BOTH
def test_the_member_is_read_and_no_other(member, pack, suffix):
    found = member(pack([*OTHERS.items(), (NAME, CONTENT)]), suffix)
    assert read(found) == CONTENT
    with found.open() as stream:
        assert stream.readline() + stream.read(7) == CONTENT[: CONTENT.index(b"\n") + 8]
    assert str(found).endswith(f"set{suffix}/set/ratings.csv")
    assert found.suffix == ".csv"


@BOTH
def test_an_empty_member_is_empty(member, pack, suffix):
    assert read(member(pack([(NAME, b"")]), suffix)) == b""


def test_a_stored_member_is_read(member):
    archive = zip_of([(NAME, CONTENT)], compression=zipfile.ZIP_STORED)
    assert read(member(archive, ".zip")) == CONTENT


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_the_name_are_refused(member):
    with pytest.raises(ReadError, match="has 2 files of this name, not one"):
        member(zip_of([(NAME, CONTENT), (NAME, b"other")]), ".zip").open()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_a_zip_member_that_is_no_regular_file_is_refused(member, kind):
    info = zipfile.ZipInfo(NAME)
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(ReadError, match="not a regular file"):
        member(zip_of([(info, b"/etc/passwd")]), ".zip").open()


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
    ],
)
def test_a_tar_member_that_is_no_regular_file_is_refused(member, kind):
    header = special(type=kind, linkname="/etc/passwd").tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ReadError, match="not a regular file"):
        member(gzip.compress(header), ".tar.gz").open()


def test_an_encrypted_member_is_refused(member):
    archive = bytearray(zip_of([(NAME, CONTENT)]))
    for header, position_of_flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        archive[archive.index(header) + position_of_flags] |= 1
    with pytest.raises(ReadError, match="it is encrypted; this is not the published archive"):
        member(bytes(archive), ".zip").open()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_only_deflate_is_inflated(member, method):
    with pytest.raises(ReadError, match=f"compressed by method {method}"):
        member(zip_of([(NAME, CONTENT)], compression=method), ".zip").open()


@BOTH
def test_a_member_that_claims_too_much_is_refused(member, pack, suffix):
    archive = pack([(NAME, CONTENT)])
    assert read(member(archive, suffix, largest=len(CONTENT) + BLOCK)) == CONTENT
    with pytest.raises(ReadError, match=f"claims {len(CONTENT)} bytes, at most"):
        member(archive, suffix, largest=len(CONTENT) - 1).open()


def test_a_zip_member_gives_no_more_than_it_claims(member):
    archive = bytearray(zip_of([(NAME, bytes(1 << 20))]))
    for header, position in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = archive.index(header) + position
        archive[start : start + 4] = (1000).to_bytes(4, "little")
    with member(bytes(archive), ".zip").open() as stream, pytest.raises(ReadError, match="damaged"):
        stream.read()
    for header, position in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        start = archive.index(header) + position
        archive[start : start + 4] = zlib.crc32(bytes(1000)).to_bytes(4, "little")
    assert len(read(member(bytes(archive), ".zip"))) == 1000


@BOTH
def test_a_bomb_is_refused_before_memory_is_taken(member, pack, suffix):
    found = member(pack([(NAME, bytes(1 << 26))]), suffix)
    tracemalloc.start()
    try:
        with pytest.raises(ReadError, match="claims 67108864 bytes"):
            found.open()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [-1, -BLOCK, 8 << 30, 1 << 62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("name", [NAME, "another"])
def test_a_tar_header_with_an_absurd_size_is_refused(member, name, kind, size):
    header = special(name, type=kind, size=size).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ReadError, match=f"claims {size} bytes"):
        member(gzip.compress(header + bytes(BLOCK)), ".tar.gz").open()


def test_a_tar_that_ends_inside_the_member_is_damaged(member):
    header = special(size=1000).tobuf()
    found = member(gzip.compress(header + bytes(600)), ".tar.gz")
    with found.open() as stream, pytest.raises(ReadError, match="damaged"):
        stream.read()


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("content", [b"", b"PK", b"<html></html>", bytes(2000), b"\x1f\x8b\x08"])
def test_what_is_no_archive_is_refused(member, suffix, content):
    with pytest.raises(ReadError, match=r"set/ratings\.csv: the archive"):
        read(member(content, suffix))


@BOTH
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_harmless(tmp_path_factory, pack, suffix, data):
    archive = bytearray(pack([*OTHERS.items(), (NAME, CONTENT[:3000])]))
    if data.draw(st.booleans(), label="cut"):
        del archive[data.draw(st.integers(0, len(archive) - 1), label="length") :]
    else:
        position = data.draw(st.integers(0, len(archive) - 1), label="position")
        archive[position] ^= data.draw(st.integers(1, 255), label="flipped bits")
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(bytes(archive))
    with contextlib.suppress(ReadError):
        found = read(ArchiveMember(path, NAME, 10_000))
        # The bytes of a zip member have a checksum; a tar.gz is checked as a whole beforehand.
        assert found == CONTENT[:3000] if suffix == ".zip" else len(found) <= 10_000
