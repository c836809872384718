"""A folder is whole or no folder of shards, whatever happens, and an interrupted run goes on."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gpu_als.data.shards import ShardedMatrix, append, conversion, writer
from gpu_als.errors import InputError, ReadError
from shards.common import SMALL, converted, cut_small

OPTIONS = {"memory": SMALL, "shard_bytes": 100, "value_type": "codes"}


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Return a file of 80 ratings, some of them of the same user and item."""
    rng = np.random.default_rng(41)
    path = tmp_path_factory.mktemp("ratings") / "r.csv"
    rows = (rng.integers([20, 8, 10], size=(80, 3)) + 1).tolist()
    path.write_text("user,item,rating\n" + "".join(f"{u},i{i},{r / 2}\n" for u, i, r in rows))
    return path


@pytest.fixture(scope="module")
def whole(ratings, tmp_path_factory):
    """Return the digest of what comes out without an interruption, and after appending."""
    folder = tmp_path_factory.mktemp("whole") / "m"
    with cut_small():
        first = converted(ratings, folder, **OPTIONS).digest
        second = append(ratings, folder, memory=SMALL, shard_bytes=100, show_progress=False).digest
    assert first != second
    return first, second


PROGRAM = """
import os, shutil, signal, sys
os.fsync = lambda descriptor: None  # against kills, not against power cuts
from shards.common import SMALL, cut_small
from gpu_als.data.shards import ShardedMatrix, append, convert
from gpu_als.errors import ReadError

ratings, folder, first, second = sys.argv[1:]
options = dict(memory=SMALL, shard_bytes=100, show_progress=False)

class Killer:
    '''Kills the process at its n-th call of a C function; counts them.'''
    def __init__(self, at):
        self.calls, self.at = 0, at
    def __call__(self, frame, event, argument):
        if event == "c_call":
            self.calls += 1
            if self.calls == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

def in_a_process(at, do, *arguments, **more):
    '''Return whether it came to its end.'''
    child = os.fork()
    if child == 0:
        sys.setprofile(Killer(at))
        do(ratings, folder, *arguments, **options, **more)
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        return True
    assert os.WTERMSIG(status) == signal.SIGKILL
    return False

def calls_of(do, **more):
    killer = Killer(0)
    sys.setprofile(killer)
    do(ratings, folder, **options, **more)
    sys.setprofile(None)
    return killer.calls

def moments(calls, n):
    '''Return n calls to be killed at, and more where the manifest is written.'''
    return sorted({*range(1, calls, calls // n), *range(calls - 600, calls, 100)})

def found():
    try:
        matrix = ShardedMatrix.open(folder)
    except (ReadError, FileNotFoundError):
        return None
    matrix.verify(show_progress=False)
    for shard in (*matrix.users, *matrix.items):
        shard.load()
    return matrix.digest

def clean():
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(path, name))
        os.rmdir(path)

cut = cut_small(entries=20, rows=30)
cut.__enter__()
"""

KILLED_ONCE = """
calls_of(convert, value_type="codes")  # the first time more is done
clean()
calls = calls_of(convert, value_type="codes")
assert found() == first
outcomes = []
for number, at in enumerate(moments(calls, 9)):
    clean()
    assert not in_a_process(at, convert, value_type="codes")
    outcomes.append(found())
    resume = number % 2 == 0 or outcomes[-1] is not None
    assert in_a_process(0, convert, value_type="codes", resume=resume)
    assert found() == first, at
    assert sorted(os.listdir(folder))[-3:] == ["items", "manifest.json", "users"]
assert in_a_process(0, convert, value_type="codes", resume=True)  # again: nothing to do
assert found() == first
assert {*outcomes} == {None, first}
"""

KILLED_AGAIN_AND_AGAIN = """
calls = calls_of(convert, value_type="codes")
clean()
kills, calls_allowed = 0, calls // 4
while not in_a_process(calls_allowed, convert, value_type="codes", resume=True):
    assert found() in (None, first)
    kills += 1
    calls_allowed += 40
assert found() == first
assert kills > 1
"""

KILLED_APPENDING = """
convert(ratings, folder, value_type="codes", **options)
append(ratings, folder, **options)
clean()
convert(ratings, folder, value_type="codes", **options)
shutil.copytree(folder, folder + ".base")
calls = calls_of(append)
assert found() == second
outcomes = []
for at in moments(calls, 6):
    clean()
    shutil.copytree(folder + ".base", folder)
    assert not in_a_process(at, append)
    outcomes.append(found())
    for _ in range(2):  # the second time there is nothing to do
        assert in_a_process(0, append, resume=True)
        assert found() == second, at
assert {*outcomes} == {first, second}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process for every moment")
@pytest.mark.parametrize(
    "code", [KILLED_ONCE, KILLED_AGAIN_AND_AGAIN, KILLED_APPENDING], ids=["once", "often", "append"]
)
def test_killed_at_any_moment_it_is_whole_or_unfinished_and_goes_on(ratings, whole, tmp_path, code):
    folder = tmp_path / "m"
    tests = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-W", "error", "-c", PROGRAM + code, ratings, folder, *whole]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": tests},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


def stop_in(stage, monkeypatch, *, after=0):
    """Let a stage of conversions fail, at once or after so many shards."""
    if after == 0:

        def fail(*_):
            raise Stopped

        monkeypatch.setattr(conversion, stage, fail)
        return
    original = writer.SideWriter._finish_shard
    done = []

    def finish(self):
        if len(done) == after:
            raise Stopped
        done.append(1)
        original(self)

    monkeypatch.setattr(writer.SideWriter, "_finish_shard", finish)


def stopped(stage, after, ratings, folder, monkeypatch):
    """Convert up to there."""
    with monkeypatch.context() as patch:
        stop_in(stage, patch, after=after)
        with pytest.raises(Stopped):
            converted(ratings, folder, **OPTIONS)


@pytest.mark.parametrize(
    ("stage", "after", "left_out"),
    [
        ("sort_out", 0, ["read_input"]),
        ("build", 0, ["read_input", "sort_out"]),
        ("build", 3, ["read_input", "sort_out"]),
        ("build", 10, ["read_input", "sort_out"]),
    ],
)
def test_completed_stages_are_not_done_again(
    ratings, whole, tmp_path, monkeypatch, stage, after, left_out
):
    with cut_small():
        stopped(stage, after, ratings, tmp_path / "m", monkeypatch)
        with pytest.raises(ReadError, match=r"unfinished; .* --resume"):
            ShardedMatrix.open(tmp_path / "m")
        shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*/0-*.indptr")}
        assert bool(shards) == (after > 0)
        for name in left_out:
            stop_in(name, monkeypatch)
        matrix = converted(ratings, tmp_path / "m", resume=True, **OPTIONS)
    assert matrix.digest == whole[0]
    kept = [path for path, time in shards.items() if path.stat().st_mtime_ns == time]
    assert len(kept) >= len(shards) - 1  # one may have been complete but not noted down yet


def test_what_fails_while_reading_leaves_nothing(ratings, tmp_path, monkeypatch):
    stop_in("read_input", monkeypatch)
    with pytest.raises(Stopped):
        converted(ratings, tmp_path / "m", **OPTIONS)
    assert os.listdir(tmp_path) == []


def interrupted(ratings, folder, monkeypatch):
    with cut_small():
        stopped("build", 4, ratings, folder, monkeypatch)


def test_without_resume_it_starts_clean(ratings, whole, tmp_path, monkeypatch):
    interrupted(ratings, tmp_path / "m", monkeypatch)
    with cut_small():
        assert converted(ratings, tmp_path / "m", **OPTIONS | {"shard_bytes": 10**6}).nnz > 0
        assert len(os.listdir(tmp_path / "m" / "users")) == 3
    other = tmp_path / "n"
    with cut_small():  # resume where nothing is to be resumed
        assert converted(ratings, other, resume=True, **OPTIONS).digest == whole[0]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("shard_bytes", 101, "size of shards"),
        ("memory", SMALL + 1, "memory"),
        ("value_type", "float32", "value type"),
        ("duplicates", "last", "duplicates"),
        ("user", 1, "columns or form of text"),
    ],
)
def test_other_options_do_not_go_on_with_it(ratings, tmp_path, monkeypatch, option, value, named):
    interrupted(ratings, tmp_path / "m", monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    message = rf"m: holds an unfinished conversion with other {named}; repeat it with the same, or"
    with pytest.raises(InputError, match=message):
        converted(ratings, tmp_path / "m", resume=True, **OPTIONS | {option: value})
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_do_not_go_on_with_it(ratings, tmp_path, monkeypatch):
    own = tmp_path / "own.csv"
    own.write_bytes(ratings.read_bytes())
    interrupted(own, tmp_path / "m", monkeypatch)
    own.write_bytes(ratings.read_bytes() + b"1,i1,5\n")
    for source in (own, ratings):
        with pytest.raises(InputError, match="unfinished conversion with other files"):
            converted(source, tmp_path / "m", resume=True, **OPTIONS)


@pytest.mark.parametrize(
    ("stage", "pattern"),
    [("sort_out", "entries"), ("build", "users-*.run"), ("sort_out", "items.npz")],
)
def test_temporary_files_that_were_lost_are_noticed(ratings, tmp_path, monkeypatch, stage, pattern):
    with cut_small():
        stopped(stage, 0, ratings, tmp_path / "m", monkeypatch)
    sorted((tmp_path / "m" / "unfinished").glob(pattern))[0].unlink()
    with cut_small(), pytest.raises(ReadError, match="is not as it was left; start the conversion"):
        converted(ratings, tmp_path / "m", resume=True, **OPTIONS)
    assert not (tmp_path / "m" / "manifest.json").exists()


@pytest.mark.parametrize("pattern", ["users/*.data", "0-items.*"])
def test_finished_files_that_were_lost_are_noticed(ratings, tmp_path, monkeypatch, pattern):
    interrupted(ratings, tmp_path / "m", monkeypatch)
    sorted((tmp_path / "m").glob(pattern))[0].unlink()
    with cut_small(), pytest.raises(ReadError, match="is missing from the folder"):
        converted(ratings, tmp_path / "m", resume=True, **OPTIONS)
    assert not (tmp_path / "m" / "manifest.json").exists()


FULL_DISK = """
import errno, os, resource, signal, sys
os.fsync = lambda descriptor: None
from shards.common import SMALL
from gpu_als.data.shards import conversion, convert

ratings, folder, finished_stage = sys.argv[1:]
options = dict(memory=SMALL, shard_bytes=100, value_type="codes", show_progress=False)

if finished_stage == "reading":
    sort_out, conversion.sort_out = conversion.sort_out, None
    try:
        convert(ratings, folder, **options)
    except TypeError:
        conversion.sort_out = sort_out

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
left = []
for size in range(0, 10**6, 400):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        matrix = convert(ratings, folder, resume=True, **options)
        break
    except OSError as error:
        assert error.errno == errno.EFBIG, error
    left.append(os.path.exists(folder))
    assert not os.path.exists(os.path.join(folder, "manifest.json"))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
matrix.verify(show_progress=False)
assert sorted(left) == left  # nothing, as long as the reading fails
print(size, sum(left), len(left), matrix.digest)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("finished_stage", ["nothing", "reading"])
def test_a_full_disk_leaves_no_manifest_and_is_gone_on_with(
    ratings, whole, tmp_path, finished_stage
):
    """With ever more room, as a limit on the size of a file, until there is enough."""
    tests = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-W", "error", "-c", FULL_DISK]
    result = subprocess.run(
        [*command, ratings, tmp_path / "m", finished_stage],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": tests},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    size, n_unfinished, n_failed, digest = result.stdout.split()
    assert int(size) > 500
    assert digest == whole[0]
    assert (n_unfinished == n_failed) == (finished_stage == "reading")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at locks as Linux has them")
def test_two_processes_do_not_write_to_one_folder(ratings, tmp_path):
    import fcntl

    folder = tmp_path / "m"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for side in ("users", "items"):
        (folder / side).mkdir()
    with pytest.raises(InputError, match=re.escape(str(folder)) + ": another process is writing"):
        converted(ratings, folder, **OPTIONS)
    assert sorted(os.listdir(folder)) == ["items", "users"]  # where the other one is to write
    os.close(descriptor)
    converted(ratings, folder, **OPTIONS)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks up names as Linux has them")
def test_what_a_step_rests_on_is_on_disk_before_it(ratings, tmp_path, monkeypatch):
    """So that a power cut finds no journal and no manifest that promise what is not there."""
    synced = []

    def fsync(descriptor):
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path / "m")
        synced.append(re.sub(r"(^|/)\.([^/]+)\.[0-9a-f]{16}\.tmp$", r"\1\2", path))

    monkeypatch.setattr(os, "fsync", fsync)
    with cut_small():
        matrix = converted(ratings, tmp_path / "m", **OPTIONS)
    first_journal, second_journal, *_ = (
        place for place, name in enumerate(synced) if name == "unfinished/journal.json"
    )
    manifest = synced.index("manifest.json")
    after_reading, after_sorting = synced[:first_journal], synced[first_journal:second_journal]
    assert {"unfinished/entries", "unfinished/users.npz", "0-users.int64"} <= {*after_reading}
    runs = [name for name in after_sorting if name.endswith(".run")]
    assert {name.split("-")[0] for name in runs} == {"unfinished/users", "unfinished/items"}
    assert len(runs) > 10
    assert matrix.manifest.names() | {"users", "items"} <= {*synced[:manifest]}
