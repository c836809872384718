"""A file under its name is always whole: the old one or the new one, whatever happens meanwhile."""

import contextlib
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gpu_als.data import atomic
from gpu_als.data.atomic import replacing

posix_only = pytest.mark.skipif(os.name != "posix", reason="permissions and signals of POSIX")
LEFTOVER = re.compile(r"\.m\.npz\.[0-9a-f]{16}\.tmp")


def replace(path, content):
    with replacing(path) as stream:
        stream.write(content)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def run_python(code, *arguments):
    """Run a program in a process of its own, with warnings as errors, and return what it prints."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def path(tmp_path):
    """Return the path of a file that holds b"old", alone in its folder."""
    path = tmp_path / "m.npz"
    path.write_bytes(b"old")
    return path


@pytest.fixture
def open_folder():
    """Yield a folder that other users of the machine may enter, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def ordinary_user():
    """Give up the rights of root, who may write everywhere, for a while."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"root cannot become another user here: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_new_content_takes_the_place_of_the_old(path):
    replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["m.npz"]


def test_the_old_content_stays_until_the_end(path):
    with replacing(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("known", [True, False])
def test_an_exception_in_the_middle_keeps_the_old_file_and_leaves_nothing(path, error, known):
    if not known:
        path.unlink()

    def fail_half_way():
        with replacing(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert os.listdir(path.parent) == ["m.npz"] * known
    assert not known or path.read_bytes() == b"old"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_at_the_end_keeps_the_old_file_and_leaves_nothing(path, monkeypatch, failing):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(atomic.os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["m.npz"]


@posix_only
def test_content_and_name_are_on_disk_in_this_order(path, monkeypatch):
    steps, sync, rename = [], os.fsync, os.replace

    def fsync(descriptor):
        found = os.fstat(descriptor)
        steps.append("sync folder" if stat.S_ISDIR(found.st_mode) else f"sync {found.st_size}")
        sync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    monkeypatch.setattr(
        atomic.os, "replace", lambda *names: (steps.append("rename"), rename(*names))
    )
    replace(path, b"12345")
    assert steps == ["sync 5", "rename", "sync folder"]


@posix_only
def test_a_file_system_that_cannot_sync_folders_will_do(path, monkeypatch):
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "invalid argument")
        sync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    replace(path, b"new")
    assert path.read_bytes() == b"new"


def is_open(path):
    """Tell whether this process has a descriptor of the file or folder."""
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # gone by now: other threads open and close files too
            if os.path.samestat(os.fstat(int(number)), path.stat()):
                return True
    return False


@posix_only
def test_no_descriptor_stays_open(path):
    with replacing(path) as stream:
        stream.write(b"new")
        assert not is_open(path)  # the former file
        descriptor = os.open(path.parent, os.O_RDONLY)
        assert is_open(path.parent)
        os.close(descriptor)
    assert path.read_bytes() == b"new"
    assert not is_open(path)
    assert not is_open(path.parent)


@posix_only
def test_a_new_file_has_the_permissions_the_umask_says(tmp_path):
    former = os.umask(0o027)
    try:
        replace(tmp_path / "m", b"new")
    finally:
        os.umask(former)
    assert mode(tmp_path / "m") == 0o640


@posix_only
@pytest.mark.parametrize("permissions", [0o600, 0o666])
def test_a_replaced_file_keeps_its_permissions_and_is_never_more_open(path, permissions):
    path.chmod(permissions)
    with replacing(path) as stream:
        assert mode(stream.fileno()) == permissions
        stream.write(b"new")
    assert mode(path) == permissions


@posix_only
def test_a_write_protected_file_is_not_replaced(open_folder):
    open_folder.chmod(0o777)
    path = open_folder / "m.npz"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with ordinary_user(), pytest.raises(PermissionError, match=r"m\.npz"):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(open_folder) == ["m.npz"]


@posix_only
def test_a_write_protected_folder_is_left_as_it_is(open_folder):
    path = open_folder / "m.npz"
    path.write_bytes(b"old")
    path.chmod(0o666)
    open_folder.chmod(0o555)
    try:
        with ordinary_user(), pytest.raises(PermissionError, match=re.escape(str(open_folder))):
            replace(path, b"new")
    finally:
        open_folder.chmod(0o755)
    assert path.read_bytes() == b"old"
    assert os.listdir(open_folder) == ["m.npz"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; make it first: .*nowhere'$"):
        replace(tmp_path / "nowhere" / "m", b"new")


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "m").mkdir()
    refused = IsADirectoryError if os.name == "posix" else PermissionError
    with pytest.raises(refused, match="m"):
        replace(tmp_path / "m", b"new")
    assert os.listdir(tmp_path) == ["m"]
    assert os.listdir(tmp_path / "m") == []


@posix_only
@pytest.mark.parametrize("dangling", [False, True])
def test_what_a_link_points_to_is_replaced(tmp_path, dangling):
    """The new file is made beside the real one: a link may point to another file system."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    real, link = tmp_path / "there" / "real", tmp_path / "here" / "link"
    link.symlink_to(Path("..", "there", "real"))
    if not dangling:
        real.write_bytes(b"old")
    with replacing(link) as stream:
        stream.write(b"new")
        assert os.listdir(tmp_path / "here") == ["link"]
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


FULL_DISK = """
import errno, resource, signal, sys
from pathlib import Path
import numpy as np
from gpu_als.data.model_file import write_arrays
from gpu_als.ranking.to_file import recommendation_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead

def save(path):
    write_arrays(path, {"a": np.ones(30_000, np.uint8), "b": np.ones(30_000, np.uint8)})

def recommend(path):
    with recommendation_file(
        path, (20, 300), dtype="f4", ids=(None, None, None), show_progress=False
    ) as write:
        for user in range(20):
            write(np.array([user]), np.ones((1, 300), np.int32), np.ones((1, 300)))

for write, name in ((save, "m.npz"), (recommend, "m.npy")):
    path = Path(sys.argv[1], name)
    write(path)
    needed = path.stat().st_size
    for limit in (0, 1, 100, *range(1000, needed, 5000), *range(needed - 400, needed, 50)):
        path.write_bytes(b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(path)
        except OSError as error:
            assert error.errno == errno.EFBIG, error
        else:
            raise AssertionError(f"{needed} bytes written where {limit} are allowed")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert path.read_bytes() == b"old"
        assert list(path.parent.iterdir()) == [path]
    path.unlink()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path):
    """Wherever it gets full: in a header, in an array, or in the directory at the end."""
    run_python(FULL_DISK, tmp_path)


KILLED = """
import os, signal, sys, warnings
from gpu_als.data.model_file import read_arrays, write_arrays
import numpy as np

path = os.path.join(sys.argv[1], "m.npz")

def version(number):
    return {"a": np.full(5000, number), "number": number}

def check(*allowed):
    arrays = read_arrays(path)
    number = int(arrays["number"])
    assert number in allowed and (arrays["a"] == number).all(), (number, allowed)
    return number

class Killer:
    def __init__(self, calls):
        self.calls = calls
    def __call__(self, frame, event, argument):
        if event == "c_call":
            self.calls -= 1
            if self.calls < 0:
                os.kill(os.getpid(), signal.SIGKILL)

warnings.simplefilter("ignore", DeprecationWarning)  # forks while BLAS has threads; none is used
write_arrays(path, version(0))
present, kept, replaced, call = 0, 0, 0, 0
while True:
    child = os.fork()
    if child == 0:
        sys.setprofile(Killer(call))
        write_arrays(path, version(call + 1))
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    former, present = present, check(present, call + 1)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0 and present == call + 1
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    kept += present == former
    replaced += present != former
    call += 1
print(kept, replaced, *os.listdir(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process for every moment")
def test_a_writer_killed_at_any_call_leaves_a_whole_file(tmp_path):
    """Killed before its first call of a C function, its second, and so on to the last."""
    kept, replaced, *names = run_python(KILLED, tmp_path).split()
    assert int(kept) > 100  # killed before the new file got its name
    assert int(replaced) > 0  # killed after
    names.remove("m.npz")
    assert names  # what the killed writers had begun
    assert all(LEFTOVER.fullmatch(name) for name in names)


LOOPING = """
import os, sys
from gpu_als.data.model_file import write_arrays
import numpy as np

number = 0
while True:
    number += 1
    write_arrays(sys.argv[1], {"a": np.full(100_000, number), "number": number})
    os.write(1, b".")
"""

READING = """
import os, random, signal, subprocess, sys
from gpu_als.data.model_file import read_arrays

path, code = os.path.join(sys.argv[1], "m.npz"), sys.argv[2]
rng = random.Random(7)
for _ in range(2):
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    writer.stdout.read(1)
    for _ in range(rng.randrange(30)):  # while it goes on writing
        arrays = read_arrays(path)
        assert (arrays["a"] == arrays["number"]).all()
    writer.kill()
    writer.communicate()
    arrays = read_arrays(path)
    assert (arrays["a"] == arrays["number"]).all()
"""


def test_a_reader_meets_whole_files_while_another_process_writes_and_is_killed(tmp_path):
    run_python(READING, tmp_path, LOOPING)
    names = set(os.listdir(tmp_path)) - {"m.npz"}
    assert all(LEFTOVER.fullmatch(name) for name in names)


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", os.devnull):
        with pytest.raises(OSError, match="a device or pipe"), replacing(path):
            pass
    assert os.listdir(tmp_path) == ["pipe"]
