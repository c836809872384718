"""A model file is whole or absent, and a file that is not one does no harm."""

import errno
import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data import model_file
from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.errors import InputError, ModelFileError

ARRAYS = {
    "user_factors": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "ids": np.array(["ann", "böb", ""]),
    "empty": np.empty((0, 4), np.float32),
    "factors": 4,
    "alpha": 0.5,
    "implicit": True,
    "solver": "cholesky",
    "nothing": "",
    "file": np.array([1], np.int64),
}


def assert_same(read, written=ARRAYS):
    assert list(read) == list(written)
    for name, value in written.items():
        expected = np.asarray(value)
        assert read[name].dtype == expected.dtype
        assert read[name].shape == expected.shape
        np.testing.assert_array_equal(read[name], expected)


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, content in members.items():
            out.writestr(name, content)


def npy(array, **header):
    """Return the bytes of a .npy file, with a header that may lie."""
    out = io.BytesIO()
    true = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(out, true | header)
    return out.getvalue() + array.tobytes()


def test_arrays_come_back_and_numpy_reads_them(tmp_path):
    path = tmp_path / "model.npz"
    write_arrays(path, ARRAYS)
    assert_same(read_arrays(path))
    with np.load(path, allow_pickle=False) as loaded:
        assert_same(dict(loaded))
    assert os.listdir(tmp_path) == ["model.npz"]


def test_arrays_of_numpy_come_back(tmp_path):
    for save in (np.savez, np.savez_compressed):
        arrays = {"a": np.zeros((1000, 300)), "b": np.arange(5)}
        save(tmp_path / "m.npz", **arrays)
        assert_same(read_arrays(tmp_path / "m.npz"), arrays)


def test_arrays_read_can_be_written_to(tmp_path):
    write_arrays(tmp_path / "m", {"a": np.zeros(3)})
    array = read_arrays(tmp_path / "m")["a"]
    array[0] = 5
    assert array.flags.aligned
    assert array.tolist() == [5, 0, 0]


def test_file_objects(tmp_path):
    buffer = io.BytesIO()
    write_arrays(buffer, ARRAYS)
    assert_same(read_arrays(io.BytesIO(buffer.getvalue())))
    with open(tmp_path / "m", "wb") as out:
        write_arrays(out, ARRAYS)
    assert (tmp_path / "m").read_bytes() == buffer.getvalue()
    with pytest.raises(InputError, match=r"file: found StringIO; pass a path or a file .*'wb'"):
        write_arrays(io.StringIO(), ARRAYS)
    with pytest.raises(InputError, match="file: found int; pass a path"):
        write_arrays(3, ARRAYS)


def test_suffix_is_appended_and_found(tmp_path):
    write_arrays(str(tmp_path / "model"), {"a": 1})
    write_arrays(tmp_path / "v1.2", {"a": 2})
    assert sorted(os.listdir(tmp_path)) == ["model.npz", "v1.2.npz"]
    assert read_arrays(str(tmp_path / "model"))["a"] == 1
    assert read_arrays(tmp_path / "v1.2")["a"] == 2
    with pytest.raises(FileNotFoundError, match="other"):
        read_arrays(tmp_path / "other")


@pytest.mark.parametrize("value", [None, [1, "a", None], {"a": 1}, np.array([{}]), 1j])
def test_what_needs_pickling_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(InputError, match=r"arrays: 'bad' has .*; convert it to numbers or strings"):
        write_arrays(tmp_path / "m", {"good": 1, "bad": value})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, failing):
    path = tmp_path / "m.npz"
    write_arrays(path, {"a": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(model_file.os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_arrays(path, {"a": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m.npz"]
    assert read_arrays(path)["a"] == 1


def test_the_new_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            model_file.os,
            name,
            lambda *args, name=name, original=original: (calls.append(name), original(*args)),
        )
    write_arrays(tmp_path / "m", {"a": 1})
    assert calls == ["fsync", "replace"]


def test_writing_follows_links_and_the_umask(tmp_path):
    (tmp_path / "real.npz").write_bytes(b"old")
    (tmp_path / "link.npz").symlink_to("real.npz")
    write_arrays(tmp_path / "link.npz", {"a": 1})
    assert (tmp_path / "link.npz").is_symlink()
    assert read_arrays(tmp_path / "real.npz")["a"] == 1
    (tmp_path / "plain").write_bytes(b"")
    modes = {(tmp_path / name).stat().st_mode for name in ("real.npz", "plain")}
    assert len(modes) == 1


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_arrays(tmp_path / "nowhere" / "m", {"a": 1})


@pytest.mark.parametrize(
    "content",
    [b"", b"user,item\n", pickle.dumps({"a": 1}), b"\x93NUMPY", b"PK\x03\x04 and no more"],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "m.npz"
    path.write_bytes(content)
    with pytest.raises(
        ModelFileError, match=re.escape(str(path)) + r": truncated, .* not a \.npz file .*restore"
    ):
        read_arrays(path)


def model_bytes():
    buffer = io.BytesIO()
    write_arrays(buffer, ARRAYS)
    return buffer.getvalue()


@pytest.mark.parametrize("as_file", [False, True])
def test_every_truncation_is_noticed(tmp_path, as_file):
    whole = model_bytes()
    for size in range(0, len(whole) - 1, 37):
        source = io.BytesIO(whole[:size])
        if as_file:
            source = tmp_path / "m.npz"
            source.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            read_arrays(source)


def test_a_directory_that_points_before_the_file_is_damage(tmp_path):
    content = bytearray(model_bytes())
    content[-6:-2] = b"\xff\xff\xff\x7f"  # where the central directory starts
    (tmp_path / "m.npz").write_bytes(content)
    for source in (io.BytesIO(bytes(content)), tmp_path / "m.npz"):
        with pytest.raises(ModelFileError, match="truncated, corrupted"):
            read_arrays(source)


def test_errors_of_the_disk_are_not_called_damage(tmp_path, monkeypatch):
    write_arrays(tmp_path / "m.npz", {"a": 1})

    def fail(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "infolist", fail)
    with pytest.raises(OSError, match="input/output error"):
        read_arrays(tmp_path / "m.npz")


@given(st.data())
def test_a_flipped_byte_is_harmless(data):
    whole = bytearray(model_bytes())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    try:
        read = read_arrays(io.BytesIO(bytes(whole)))
    except ModelFileError:
        return
    # Only names, dates and the like are outside the checksums.
    for expected, array in zip(ARRAYS.values(), read.values(), strict=False):
        np.testing.assert_array_equal(array, np.asarray(expected))


def test_a_wrong_checksum_is_reported(tmp_path):
    path = tmp_path / "m.npz"
    write_arrays(path, {"a": np.zeros(100, np.uint8)})
    content = bytearray(path.read_bytes())
    content[content.index(bytes(100)) + 50] = 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m\.npz: .*Bad CRC-32.*write it again or restore"):
        read_arrays(path)


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.array([{"b": 1}]))
    with pytest.raises(
        ModelFileError, match=r"m\.npz: array 'a\.npy' holds pickled objects, .*only"
    ):
        read_arrays(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            npy(np.zeros(4), shape=(10**12,)),
            r"claims shape \(1000000000000,\) of float64 but holds",
        ),
        (npy(np.zeros(4), shape=(3,)), "claims shape"),
        (npy(np.zeros(4), shape=(2**32, 2**32)), "claims shape"),
        (npy(np.zeros(0), shape=(10**12,), descr="<U0"), "claims shape"),
        (npy(np.zeros(4), shape=(-2, -2)), "which no model has"),
        (npy(np.zeros(4), descr="<c16", shape=(2,)), "which no model has"),
        (npy(np.zeros(4)).replace(b"NUMPY\x01", b"NUMPY\x07"), "unknown .npy version"),
        (b"not an array", "truncated, corrupted"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, content, message):
    path = tmp_path / "m.npz"
    archive(path, {"a.npy": content})
    with pytest.raises(ModelFileError, match=r"m\.npz: .*" + message):
        read_arrays(path)


def test_a_size_no_compression_reaches_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    array = np.zeros(10**6, np.uint8)
    archive(path, {"a.npy": npy(array)}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    claimed = len(npy(array))
    lie = (2**31).to_bytes(4, "little")
    path.write_bytes(content.replace(claimed.to_bytes(4, "little"), lie))
    with pytest.raises(ModelFileError, match=r"m\.npz: array 'a\.npy' claims 2147483648 bytes in "):
        read_arrays(path)


def test_a_member_shorter_than_it_claims_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    array = np.zeros(10**6, np.uint8)
    archive(path, {"a.npy": npy(array, shape=(10**6 + 9,))}, zipfile.ZIP_DEFLATED)
    content, claimed = path.read_bytes(), len(npy(array))
    longer = (claimed + 9).to_bytes(4, "little")
    path.write_bytes(content.replace(claimed.to_bytes(4, "little"), longer))
    with pytest.raises(ModelFileError, match=r"m\.npz: "):
        read_arrays(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as out:
        for value in (1, 2):
            out.writestr("a.npy", npy(np.array(value)))
    with pytest.raises(ModelFileError, match="two arrays have the same name; write the file again"):
        read_arrays(path)
