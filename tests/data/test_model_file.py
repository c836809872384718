"""A model file is whole or absent, and a file that is not one does no harm."""

import errno
import io
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
import zipfile
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als import AlternatingLeastSquares, ExplicitALS, Interactions
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


def test_equal_arrays_give_equal_files_whenever_they_are_written(tmp_path):
    """No member has a date but the first that an archive can hold."""
    write_arrays(tmp_path / "m", ARRAYS)
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_array_may_be_longer_than_a_plain_archive_can_say(tmp_path, monkeypatch):
    """As one of 2 GB and more is; here whatever is longer than 200 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 200)
    arrays = {"a": np.arange(100.0), "b": np.arange(3)}
    write_arrays(tmp_path / "m", arrays)
    assert_same(read_arrays(tmp_path / "m"), arrays)


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
    with pytest.raises(InputError, match=r"file: found StringIO; pass a path or a file .*'rb'"):
        read_arrays(io.StringIO())
    with pytest.raises(InputError, match="file: found list; pass a path"):
        read_arrays([])


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


@cache
def saved(kind):
    """Return the bytes of a small model's file."""
    data = Interactions.from_triples(list("abcab"), [7, 8, 9, 9, 7], [3.0, 1.0, 2.0, 5.0, 4.0])
    options = {"factors": 3, "iterations": 2, "random_state": 5}
    model = kind(**options)
    model.fit(data, show_progress=False)
    buffer = io.BytesIO()
    model.save(buffer)
    return buffer.getvalue()


@cache
def compressed(kind):
    """Return the bytes of the same file as ``numpy.savez_compressed`` writes it."""
    file = io.BytesIO()
    archive(file, members(kind), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def members(kind):
    """Return the .npy files in a model's file by name."""
    with zipfile.ZipFile(io.BytesIO(saved(kind))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def changed(kind, **arrays):
    """Return a model's file in which arrays were added, replaced, or left out (None)."""
    with np.load(io.BytesIO(saved(kind))) as archive:
        stored = {**archive, **arrays}
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in stored.items() if array is not None})
    file.seek(0)
    return file


def state(model):
    """Return whatever a loaded model consists of."""
    arrays = ("user_factors", "item_factors", "user_biases", "item_biases", "user_ids", "item_ids")
    found = {name: np.asarray(getattr(model, name, None)).tolist() for name in arrays}
    return found, repr(model.get_params()), getattr(model, "global_mean", None)


both_models = pytest.mark.parametrize("kind", [AlternatingLeastSquares, ExplicitALS])


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


# --- hostile files ---------------------------------------------------------------------------


def header(descr="'<f4'", shape="(3, 3)", *, version=1, padding=0):
    """Return the header of a .npy file, whose parts are put into it as they are."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}{' ' * padding}\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode("latin1")


LYING_HEADERS = {
    "absurd shape": (header(shape=f"({10**12}, 100)"), "claims shape"),
    "too few rows": (header(shape="(2, 3)"), "claims shape"),
    "a product beyond 64 bits": (header(shape=f"({2**32}, {2**32})"), "claims shape"),
    "values of no size": (header("'<U0'", f"({10**12},)"), "truncated, corrupted"),
    "huge strings": (header("'<U500000000'", "(3,)"), "claims shape"),
    "negative shape": (header(shape="(-3, -3)"), "no array of numbers"),
    "bool in shape": (header(shape="(True, 9)"), "no array of numbers"),
    "digits without end": (header(shape=f"({'9' * 5000},)"), "no array of numbers"),
    "objects": (header("'|O'"), "pickled objects, which are never loaded"),
    "an object in a record": (header("[('a', '|O')]"), "no array of numbers"),
    "records": (header("[('a', '<f4')]"), "no array of numbers"),
    "a matrix in each cell": (header("('<f4', (3,))", "(3,)"), "no array of numbers"),
    "no type": (header("()"), "no array of numbers"),
    "complex numbers": (header("'<c8'"), "no array of numbers"),
    "dates": (header("'<M8[s]'"), "no array of numbers"),
    "raw bytes": (header("'|V4'"), "no array of numbers"),
    "a type there is not": (header("'<f3'"), "truncated, corrupted"),
    "a call": (header("__import__('os').abort()"), "no array of numbers"),
    "nested too deep": (header(shape="(" * 5000), "no array of numbers"),
    "signs without end": (header(shape="(" + "-" * 9000 + "1,)"), "no array of numbers"),
    "Python 2": (header(shape="(3L, 3L)"), "no array of numbers"),
    "keys of two types": (header().replace(b"'shape'", b"0000000"), "no array of numbers"),
    "version 2": (header(version=2), "version 1.0"),
    "version 3": (header(version=3), "version 1.0"),
    "a header of 4 GB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "version 1.0"),
    "a header beyond the end": (
        b"\x93NUMPY\x01\x00\xff\xff" + b" " * 99,
        "no array of numbers",
    ),
    "no array": (b"not an array", "version 1.0"),
    "nothing": (b"", "version 1.0"),
}


@both_models
@pytest.mark.parametrize("case", LYING_HEADERS)
def test_headers_that_lie_are_refused(tmp_path, kind, case):
    content, message = LYING_HEADERS[case]
    if content.endswith(b"\n") and b"<U0" not in content:
        content += bytes(36)  # what factors of shape (3, 3) take
    path = tmp_path / "m.npz"
    archive(path, {**members(kind), "user_factors.npy": content})
    with pytest.raises(ModelFileError, match=r"m\.npz: .*" + message):
        kind.load(path)


@both_models
def test_the_header_of_these_cases_is_good_where_it_does_not_lie(tmp_path, kind):
    path = tmp_path / "m.npz"
    for good in (header() + bytes(36), header("'>f4'", padding=999) + bytes(36)):
        archive(path, {**members(kind), "user_factors.npy": good})
        assert (kind.load(path).user_factors == 0).all()


@both_models
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path, kind):
    path = tmp_path / "m.npz"
    archive(path, members(kind))
    with zipfile.ZipFile(path, "a") as out:
        out.writestr("user_factors.npy", npy(np.ones((3, 3), np.float32)))
    with pytest.raises(ModelFileError, match="two arrays have the same name; write the file again"):
        kind.load(path)


@both_models
@pytest.mark.parametrize(
    "name",
    [
        "../x.npy", "/etc/x.npy", "a/x.npy", "..\\x.npy", "folder/", "user_factors", "x.npy.exe",
        "x.txt",
    ],
)  # fmt: skip
def test_members_that_are_no_arrays_are_refused(tmp_path, kind, name):
    """Names with a path mean nothing here, since no file is ever extracted; they are refused."""
    path = tmp_path / "m.npz"
    archive(path, {**members(kind), name: npy(np.zeros(3))})
    message = rf"m\.npz: holds {re.escape(repr(name))}, which is not an array"
    with pytest.raises(ModelFileError, match=message):
        kind.load(path)
    assert os.listdir(tmp_path) == ["m.npz"]


@both_models
@pytest.mark.parametrize("array", [np.zeros(1000), np.array(3.0), np.array("x")])
def test_arrays_that_no_model_has_are_refused(kind, array):
    with pytest.raises(ModelFileError, match=r"'stranger'.*newer gpu_als"):
        kind.load(changed(kind, stranger=array))


@both_models
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_does_not_use_is_refused(tmp_path, kind, method):
    """Such a member may claim a dictionary of 4 GB."""
    archive(tmp_path / "m.npz", members(kind), method)
    with pytest.raises(ModelFileError, match=r"compressed in a way .* numpy\.savez"):
        kind.load(tmp_path / "m.npz")


@both_models
def test_encrypted_members_are_refused(kind):
    content = bytearray(saved(kind))
    content[6] |= 1  # the flags of the first member
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    with pytest.raises(ModelFileError, match="encrypted"):
        kind.load(io.BytesIO(content))


@both_models
def test_an_entry_of_the_directory_that_hides_the_next_is_noticed(kind):
    """The directory has no checksum; without this, parameters would fall back to defaults."""
    content = saved(kind)
    entry = content.index(b"PK\x01\x02")
    while (following := content.find(b"PK\x01\x02", entry + 1)) >= 0:
        after = content.find(b"PK\x01\x02", following + 1)
        if after < 0:
            after = content.index(b"PK\x05\x06")
        hiding = bytearray(content)
        hiding[entry + 32 : entry + 34] = (after - following).to_bytes(2, "little")  # its comment
        with pytest.raises(ModelFileError, match="its directory is damaged"):
            kind.load(io.BytesIO(hiding))
        entry = following


def test_overlapping_members_are_refused(tmp_path):
    """One member's bytes hold another member: each is read by itself, and both fit together."""
    inner = io.BytesIO()
    content = npy(np.zeros(5000, np.uint8))
    archive(inner, {"b.npy": content})
    record = inner.getvalue()[: 30 + len("b.npy") + len(content)]
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as out:
        outer = npy(np.frombuffer(record, np.uint8))
        out.writestr("a.npy", outer)
        with zipfile.ZipFile(inner) as read:
            (info,) = read.infolist()
        info.header_offset = 30 + len("a.npy") + len(outer) - len(record)
        out.filelist.append(info)
    with zipfile.ZipFile(tmp_path / "m.npz") as read:
        assert read.namelist() == ["a.npy", "b.npy"]
    with pytest.raises(ModelFileError, match=r"m\.npz: its arrays overlap; the file is hostile"):
        read_arrays(tmp_path / "m.npz")


@pytest.mark.parametrize("offset", [2**40, 2**63, 2**64 - 1])
def test_members_beyond_the_file_are_refused(tmp_path, offset):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as out:
        out.writestr("a.npy", npy(np.zeros(3)))
        out.filelist[0].header_offset = offset
    for source in (tmp_path / "m.npz", io.BytesIO((tmp_path / "m.npz").read_bytes())):
        with pytest.raises(ModelFileError, match="truncated, corrupted"):
            read_arrays(source)


def test_a_member_shorter_than_it_claims_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    array = np.zeros(10**6, np.uint8)
    archive(path, {"a.npy": npy(array, shape=(10**6 + 9,))}, zipfile.ZIP_DEFLATED)
    content, claimed = path.read_bytes(), len(npy(array))
    longer = (claimed + 9).to_bytes(4, "little")
    path.write_bytes(content.replace(claimed.to_bytes(4, "little"), longer))
    with pytest.raises(ModelFileError, match=r"m\.npz: "):
        read_arrays(path)


# --- memory --------------------------------------------------------------------------------------

WITHIN_LIMITS = """
import resource, sys
from gpu_als import AlternatingLeastSquares, ExplicitALS
from gpu_als.data.model_file import read_arrays
from gpu_als.errors import ModelFileError

with open("/proc/self/statm") as statm:
    taken = int(statm.read().split()[0]) * resource.getpagesize()
limit = taken + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for load in (read_arrays, AlternatingLeastSquares.load, ExplicitALS.load):
    try:
        load(sys.argv[1])
    except ModelFileError as error:
        print(str(error).removeprefix(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def refusals(path, more_bytes):
    """Read a file with little memory; return the messages and the kilobytes that were taken."""
    result = subprocess.run(
        [sys.executable, "-c", WITHIN_LIMITS, path, str(more_bytes)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *messages, taken = result.stdout.splitlines()
    return messages, int(taken)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


@linux_only
def test_a_small_file_that_inflates_to_much_is_refused_before_memory_is_taken(tmp_path):
    """Factors of zero, compressed almost at deflate's best ratio."""
    path = tmp_path / "m.npz"
    zeros = npy(np.zeros((400_000, 64), np.float32))
    archive(path, {"user_factors.npy": zeros, "item_factors.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    messages, kilobytes = refusals(path, 64 << 20)
    assert len(messages) == 3
    assert all("more than 100 times as much" in message for message in messages)
    assert kilobytes < 16384


@linux_only
@pytest.mark.parametrize("claimed", [2**31, 2**63])
def test_a_member_that_claims_much_is_refused_before_memory_is_taken(tmp_path, claimed):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("user_factors.npy", header(shape=f"({claimed // 16}, 4)") + bytes(10**6))
        out.filelist[0].file_size = claimed
    messages, kilobytes = refusals(path, 64 << 20)
    assert len(messages) == 3
    assert all("more than 100 times as much" in message for message in messages)
    assert kilobytes < 16384


@linux_only
def test_a_file_larger_than_memory_is_refused(tmp_path):
    """An honest one: what is stored as it is never takes more memory than its file is long."""
    path = tmp_path / "m.npz"
    write_arrays(path, {"user_factors": np.zeros((1 << 20, 64), np.float32)})
    messages, kilobytes = refusals(path, 128 << 20)
    assert len(messages) == 3
    assert all("do not fit into memory" in message for message in messages)
    assert kilobytes < 16384


def test_ordinary_compression_is_read(tmp_path):
    """Ids of one length, repeated rows and constant values compress well, but not 100 times."""
    path = tmp_path / "m.npz"
    rng = np.random.default_rng(7)
    arrays = {
        "user_factors": np.repeat(rng.random((100_000, 8), np.float32), 4, axis=0),
        "user_ids": np.array([f"user-{number:030}" for number in range(100_000)]),
        "zeros": np.zeros(6_000_000),
    }
    np.savez_compressed(path, **arrays)
    total = sum(array.nbytes for array in arrays.values())
    assert 64 << 20 < total < 100 * path.stat().st_size
    assert_same(read_arrays(path), arrays)


def test_a_compressed_matrix_of_ones_is_read(tmp_path):
    matrix = sp.random(3000, 2000, 0.02, "csr", random_state=7)
    matrix.data[:] = 1
    sp.save_npz(tmp_path / "m.npz", matrix)
    np.testing.assert_array_equal(read_arrays(tmp_path / "m.npz")["indices"], matrix.indices)


# --- models --------------------------------------------------------------------------------------

BAD_PARAMETERS = [
    ("factors", -1), ("factors", 2.5), ("factors", 2**40), ("factors", "3"), ("factors", True),
    ("factors", np.arange(3)), ("iterations", -1), ("iterations", np.nan),
    ("regularization", np.nan), ("regularization", -1.0), ("regularization", np.inf),
    ("regularization", "0.1"), ("regularization", np.ones(3)), ("random_state", -1),
    ("random_state", "x"), ("random_state", 1.5), ("dtype", "int8"), ("dtype", "x"), ("dtype", 4),
]  # fmt: skip
BAD_IMPLICIT = [
    ("alpha", np.nan), ("alpha", 0.0), ("alpha", -2.0), ("alpha", "1"), ("alpha", np.inf),
    ("use_cg", 2), ("use_cg", "yes"), ("use_native", "yes"), ("calculate_training_loss", 2.0),
    ("num_threads", -1), ("num_threads", 0.5), ("cg_steps", 0), ("cg_steps", 1.5),
    ("unobserved_weight", np.nan), ("unobserved_weight", "a"), ("regularization_exponent", -1.0),
]  # fmt: skip
BAD_EXPLICIT = [
    ("bias", 2), ("bias", "yes"), ("nonnegative", "x"), ("solver", "x"), ("solver", 1),
    ("tol", np.nan), ("tol", "x"), ("patience", -1), ("scale_regularization", "x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(AlternatingLeastSquares, *bad) for bad in BAD_PARAMETERS + BAD_IMPLICIT]
    + [(ExplicitALS, *bad) for bad in BAD_PARAMETERS + BAD_EXPLICIT],
)
def test_parameters_of_the_wrong_kind_are_refused(kind, name, value):
    stored = name if kind is AlternatingLeastSquares else f"param_{name}"
    with pytest.raises(ModelFileError, match=f"a stored parameter cannot be used: .*({name}|size)"):
        kind.load(changed(kind, **{stored: np.asarray(value)}))


BAD_FACTORS = {
    "too wide": np.zeros((3, 4), np.float32),
    "three axes": np.zeros((3, 3, 1), np.float32),
    "one axis": np.zeros(3, np.float32),
    "integers": np.zeros((3, 3), np.int64),
    "bools": np.zeros((3, 3), bool),
    "texts": np.full((3, 3), "a"),
    "NaN": np.full((3, 3), np.nan, np.float32),
    "inf": np.full((3, 3), -np.inf, np.float32),
    "beyond float32": np.full((3, 3), 1e300),
    "missing": None,
}


@both_models
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("case", BAD_FACTORS)
def test_factors_that_are_none_are_refused(kind, side, case):
    with pytest.raises(ModelFileError, match=f"{side}.factors|do not fit"):
        kind.load(changed(kind, **{f"{side}_factors": BAD_FACTORS[case]}))


@both_models
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(
    "ids",
    [
        np.arange(4), np.arange(2), np.arange(3.0), np.array(5), np.array([[1], [2], [3]]),
        np.array([b"a", b"b", b"c"]), np.array([True, False, True]),
    ],
    ids=str,
)  # fmt: skip
def test_ids_that_do_not_fit_are_refused(kind, side, ids):
    with pytest.raises(ModelFileError, match=f"{side}_ids"):
        kind.load(changed(kind, **{f"{side}_ids": ids}))


@both_models
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_any_order_of_bytes_and_of_axes_gives_the_same_model(kind, order, dtype):
    expected = kind.load(io.BytesIO(saved(kind)))
    factors = {
        name: np.asarray(getattr(expected, name), dtype, order=order)
        for name in ("user_factors", "item_factors")
    }
    ids = expected.item_ids.astype(">i4")
    loaded = kind.load(changed(kind, **factors, item_ids=ids))
    assert state(loaded) == state(expected)
    for name in factors:
        assert getattr(loaded, name).dtype is np.dtype(np.float32)
        assert getattr(loaded, name).strides[1] == 4  # each row in one piece


@both_models
@given(
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4
    ),
    in_directory=st.booleans(),
    deflated=st.booleans(),
)
def test_flipped_bytes_are_noticed_or_harmless(kind, flips, in_directory, deflated):
    content = bytearray(compressed(kind) if deflated else saved(kind))
    start = content.index(b"PK\x01\x02") if in_directory else 0
    for place, difference in flips:
        content[start + int(place * (len(content) - start))] ^= difference
    tracemalloc.start()
    try:
        loaded = kind.load(io.BytesIO(content))
    except ModelFileError:
        loaded = None
    finally:
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken < 20 * len(content) + 2**20
    # Dates and the like are neither checked nor read.
    assert loaded is None or state(loaded) == state(kind.load(io.BytesIO(saved(kind))))


@both_models
def test_a_failure_while_saving_keeps_the_model_saved_before(tmp_path, monkeypatch, kind):
    model = kind.load(io.BytesIO(saved(kind)))
    model.save(tmp_path / "m.npz")
    before = (tmp_path / "m.npz").read_bytes()
    write, calls = np.lib.format.write_array, []

    def fail_at_the_third(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "write_array", fail_at_the_third)
    with pytest.raises(OSError, match="no space left"):
        model.save(tmp_path / "m.npz")
    assert (tmp_path / "m.npz").read_bytes() == before
    assert os.listdir(tmp_path) == ["m.npz"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@both_models
def test_a_full_device_is_reported(kind):
    model = kind.load(io.BytesIO(saved(kind)))
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as full:
        model.save(full)


@both_models
def test_models_are_read_through_links(tmp_path, kind):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "m.npz").write_bytes(saved(kind))
    (tmp_path / "link.npz").symlink_to(tmp_path / "real" / "m.npz")
    assert state(kind.load(tmp_path / "link.npz")) == state(kind.load(io.BytesIO(saved(kind))))
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    with pytest.raises(OSError, match="loop"):
        kind.load(tmp_path / "loop.npz")
    with pytest.raises(OSError, match="real"):
        kind.load(tmp_path / "real")
