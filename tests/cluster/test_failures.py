"""Workers that die, swell, or join, and clusters that are lost: the same factors, or plain words.

A fit that ends in an error leaves a state on disk from which it goes on.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint.common import assert_same
from distributed import Client, Future
from distributed.comm import CommClosedError

from cluster.common import (
    DATA,
    CountSolves,
    DieOnce,
    FullDisk,
    RunOutOfMemory,
    Swell,
    WaitFor,
    all_are_back,
    count_solves,
    difference,
    explicit,
    fit,
    fit_on,
    go_on,
    implicit,
    leave_alone,
    local_cluster,
    pause,
    see_no_folder,
    wait_until,
)
from gpu_als.dask import DaskInteractions, cluster, engine
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import ClusterError, ReadError
from gpu_als.train.checkpoint import Saved

ITERATIONS = 4


def addresses(client):
    return set(client.scheduler_info(n_workers=-1)["workers"])


def retire_all(client):
    client.cluster.scale(0)
    all_are_back(client, 0)


def assert_goes_on(file, at_least=1):
    """Assert that a state is whole, and that one process goes on from it to the right factors."""
    assert at_least <= Saved.read(file).report.iterations < ITERATIONS
    found = fit(implicit(iterations=ITERATIONS), checkpoint=file, resume=True)
    assert difference(found, fit(implicit(iterations=ITERATIONS))) <= 1e-5


@pytest.fixture
def two(cluster_of):
    """Yield a client of two workers, which are there again afterwards."""
    client = cluster_of(2)
    yield client
    all_are_back(client)
    client.run(leave_alone)


@contextmanager
def when(condition, act):
    """Do something as soon as it is time, in the background."""

    def watch():
        wait_until(condition)
        act()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        watcher.join()


@pytest.mark.parametrize(("make", "number"), [(implicit, 1), (explicit, 4)])
def test_a_worker_killed_in_a_half_sweep_changes_nothing(two, make, number, tmp_path):
    expected = fit_on(two, make(iterations=ITERATIONS))
    before = addresses(two)
    two.run(count_solves, DieOnce(number, tmp_path / "died"))
    found = fit_on(two, make(iterations=ITERATIONS))
    assert (tmp_path / "died").exists()
    assert addresses(two) != before
    assert difference(found, expected) == 0
    assert found.report_.losses == expected.report_.losses


def secure_always(monkeypatch):
    """Have factors pass through the client after every half-sweep."""
    monkeypatch.setattr(engine, "_SECURE_SECONDS", 0)
    monkeypatch.setattr(engine, "_SECURE_SHARE", 1e9)


def test_the_half_sweeps_that_a_loss_could_cost_again_are_those_since_factors_were_secured(
    two, monkeypatch
):
    """Dask keeps the tasks that led to what it holds."""

    def known():
        return sum(str(key).startswith("solve-") for key in two.cluster.scheduler.tasks)

    seen = []
    fit_on(two, implicit(iterations=ITERATIONS), callback=lambda *_: seen.append(known()))
    assert seen == [4, 8, 12, 16]
    secure_always(monkeypatch)
    fit_on(
        two, implicit(iterations=ITERATIONS), callback=lambda *_: wait_until(lambda: known() == 0)
    )


def test_a_worker_killed_late_costs_little(two, monkeypatch, tmp_path):
    iterations, last = 8, 15  # it dies as the last iteration begins, with nothing held twice
    secure_always(monkeypatch)
    expected = fit_on(two, implicit(iterations=iterations))
    two.run(count_solves, DieOnce(last, tmp_path / "died"))
    counter = CountSolves()
    two.cluster.scheduler.add_plugin(counter)
    found = fit_on(two, implicit(iterations=iterations), callback=lambda *_: two.amm.run_once())
    two.cluster.scheduler.remove_plugin(counter.name)
    assert difference(found, expected) == 0
    assert (tmp_path / "died").exists()
    planned = 2 * 2 * iterations
    assert planned <= counter.solves <= planned + 3


def test_a_worker_that_is_lost_between_fits_is_not_missed(two):
    data = DaskInteractions(two, DATA)
    expected = fit(explicit(), data)
    before = addresses(two)
    os.kill(next(iter(two.run(os.getpid).values())), signal.SIGKILL)
    wait_until(lambda: addresses(two) != before)
    all_are_back(two)
    assert_same(fit(explicit(), data), expected)


def test_a_worker_that_joins_while_the_other_has_all_gets_a_part(two):
    """One of two is retired in the first iteration and comes again in the second."""
    expected = fit_on(two, explicit(iterations=ITERATIONS))
    seen = []

    def change(iteration, *_):
        seen.append(len(two.nthreads()))
        two.cluster.scale(1 if iteration == 0 else 2)
        all_are_back(two, 1 if iteration == 0 else 2)

    data = DaskInteractions(two, DATA)
    found = fit(explicit(iterations=ITERATIONS), data, callback=change)
    assert seen == [2, 1, 2, 2]
    assert difference(found, expected) == 0
    # What the one that went had made came to the other once; from then on there was nothing.
    assert found.report_.transferred[1][1] == 0
    assert all(found.report_.transferred[3])


def test_more_workers_than_at_the_start_change_nothing(two):
    expected = fit_on(two, explicit(iterations=ITERATIONS))

    def join(iteration, *_):
        if iteration == 0:
            two.cluster.scale(3)
            all_are_back(two, 3)

    found = fit_on(two, explicit(iterations=ITERATIONS), callback=join)
    two.cluster.scale(2)
    all_are_back(two)
    assert difference(found, expected) == 0


def test_a_worker_that_runs_out_of_memory_is_told_of(two, tmp_path):
    two.run(count_solves, RunOutOfMemory(4))
    with pytest.raises(ClusterError, match=r"a worker ran out of memory \(.*8 TiB.*checkpoint="):
        fit_on(two, implicit(iterations=ITERATIONS), checkpoint=tmp_path / "s.npz")
    assert_goes_on(tmp_path / "s.npz")


def test_workers_whose_memory_is_full(two, tmp_path, monkeypatch):
    """Dask gives those no tasks: one of two is done without, and of both there is a word."""
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.2)
    file, to_pause = tmp_path / "s.npz", list(two.nthreads())

    def fill(iteration, *_):
        if to_pause and iteration > 0:
            two.run(pause, workers=[to_pause.pop()])
            monkeypatch.setattr(cluster, "_TIMEOUT_SECONDS", 1 if not to_pause else 60)

    data = DaskInteractions(two, DATA)
    with pytest.raises(ClusterError, match=r"workers are paused .* memory.*checkpoint=FILE"):
        fit(implicit(iterations=ITERATIONS), data, checkpoint=file, callback=fill)
    two.run(go_on)
    assert_goes_on(file, 3)


def test_paused_workers_finish_their_tasks_however_long_that_takes(two, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "_TIMEOUT_SECONDS", 0.5)
    waits, goes_on = tmp_path / "waits", tmp_path / "goes on"
    expected = fit_on(two, implicit(iterations=ITERATIONS))
    looks, look = [], cluster.Cluster._makes_progress

    def look_and_count(self, futures):
        looks.append(look(self, futures))
        return looks[-1]

    def pause_both():
        two.run(pause)
        begin = time.monotonic()
        wait_until(lambda: time.monotonic() > begin + 1 and len(looks) > 5)
        two.run(go_on)
        goes_on.touch()

    two.run(count_solves, WaitFor(4, waits, goes_on))
    monkeypatch.setattr(cluster.Cluster, "_makes_progress", look_and_count)
    with when(waits.exists, pause_both):
        found = fit_on(two, implicit(iterations=ITERATIONS))
    assert len(looks) > 5
    assert difference(found, expected) == 0


def test_a_worker_that_is_killed_for_its_memory_is_told_of(tmp_path):
    """By its nanny; here the first time is the last, where Dask would try three times more."""
    file = tmp_path / "s.npz"
    with local_cluster(1, memory_limit="450 MiB") as client:
        client.cluster.scheduler.allowed_failures = 0
        data = DaskInteractions(client, DATA)
        client.run(count_solves, Swell(4))
        with pytest.raises(ClusterError, match=r"died again and again .* more memory.*checkpoint="):
            fit(implicit(iterations=ITERATIONS), data, checkpoint=file)
    assert_goes_on(file)


def test_a_folder_that_workers_do_not_see_is_told_of(two, tmp_path):
    data = ShardedMatrix.from_matrix(DATA, tmp_path / "m", shard_bytes=900)
    two.run(see_no_folder)
    with pytest.raises(ReadError, match=r"a worker says: .*indptr.* Every worker has to see the"):
        fit_on(two, explicit(), data)


def test_a_full_disk_of_a_worker_is_not_a_lost_cluster(two, tmp_path):
    two.run(count_solves, FullDisk(4))
    with pytest.raises(ClusterError, match=r"a worker cannot use a file \(OSError: .*checkpoint="):
        fit_on(two, implicit(iterations=ITERATIONS), checkpoint=tmp_path / "s.npz")
    assert_goes_on(tmp_path / "s.npz")


def test_a_client_that_is_closed_is_told_of(two):
    with Client(two.scheduler.address, set_as_default=False) as other:
        data = DaskInteractions(other, DATA)
    with pytest.raises(ClusterError, match="the client has lost the cluster, or was closed"):
        fit(explicit(), data)


def cancel_all(client):
    client.cancel([Future(key, client) for key in list(client.futures)])


def test_tasks_that_someone_else_cancels_are_told_of(two, tmp_path):
    """While a worker is at work."""
    file, waits, goes_on = (tmp_path / name for name in ("s.npz", "waits", "goes on"))
    two.run(count_solves, WaitFor(4, waits, goes_on))
    with (
        when(waits.exists, lambda: cancel_all(two)),
        pytest.raises(ClusterError, match=r"(?s)the cluster was lost .*cancelled"),
    ):
        fit_on(two, implicit(iterations=ITERATIONS), checkpoint=file)
    goes_on.touch()
    assert_goes_on(file)


def test_without_workers_and_without_hope(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.2)

    def scale_down(iteration, *_):
        if iteration == 1:
            retire_all(client)

    with local_cluster(1) as client:
        data = DaskInteractions(client, DATA)
        file = tmp_path / "s.npz"
        with pytest.raises(ClusterError, match=r"the cluster has no workers .*checkpoint=FILE"):
            fit(implicit(iterations=ITERATIONS), data, checkpoint=file, callback=scale_down)
        with pytest.raises(ClusterError, match="the cluster has no workers"):
            fit(explicit(), data)
    assert_goes_on(file)


def test_an_interrupt_that_workers_get_too_ends_in_a_moment(tmp_path, monkeypatch):
    """As Ctrl-C does in the terminal that a LocalCluster was started in."""
    monkeypatch.setattr(engine, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "_TIMEOUT_SECONDS", 600)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.2)
    file, waits, sent = tmp_path / "s.npz", tmp_path / "waits", []

    def interrupt():
        (nanny,) = client.cluster.workers.values()
        nanny.auto_restart = False
        os.kill(nanny.pid, signal.SIGKILL)
        wait_until(lambda: not client.nthreads())
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with local_cluster(1) as client:
        data = DaskInteractions(client, DATA)
        client.run(count_solves, WaitFor(4, waits, tmp_path / "never"))
        with (
            when(waits.exists, interrupt),
            pytest.raises(ClusterError, match=r"(no workers|were lost) .*checkpoint=FILE"),
        ):
            fit(implicit(iterations=ITERATIONS), data, checkpoint=file)
        assert time.monotonic() - sent[0] < 300
    assert_goes_on(file)


def start(*command):
    """Start a module of Dask's that finds what workers are to do here."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_scheduler_that_is_killed_ends_the_fit_quickly(tmp_path, monkeypatch):
    """In processes of their own, as on several machines; and killed while a worker solves."""
    monkeypatch.setattr(cluster, "_TIMEOUT_SECONDS", 600)
    waits, file, where = tmp_path / "waits", tmp_path / "s.npz", str(tmp_path / "scheduler.json")
    local = "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", where
    processes = [
        start("distributed.cli.dask_scheduler", "--port", "0", *local),
        start("distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *local),
    ]
    try:
        with Client(scheduler_file=where) as client:
            client.wait_for_workers(1)
            client.run(count_solves, WaitFor(6, waits, tmp_path / "never"))
            data = DaskInteractions(client, DATA)
            begin = time.monotonic()
            with (
                when(waits.exists, processes[0].kill),
                pytest.raises(ClusterError, match=r"(?s)the cluster was lost .*checkpoint=FILE"),
            ):
                fit(implicit(iterations=ITERATIONS), data, checkpoint=file)
            assert time.monotonic() - begin < 300
            with pytest.raises(ClusterError, match="the client has lost the cluster"):
                fit(explicit(), data)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert_goes_on(file, 2)


@pytest.mark.parametrize(
    ("there", "paused", "busy", "executing", "goes_on"),
    [
        ("ab", "", "ab", "ab", True),
        ("ab", "", "", "", True),  # results are on their way
        ("", "", "", "", False),
        ("ab", "ab", "", "", False),
        ("abcdefg", "abcdefg", "", "", False),
        ("ab", "a", "b", "", True),  # what b needs is on its way
        ("ab", "a", "ab", "b", True),
        ("ab", "a", "a", "a", True),
        ("ab", "a", "a", "", False),  # a was given tasks and then paused
    ],
)
def test_whether_there_is_hope(there, paused, busy, executing, goes_on):
    statuses = {each: {"status": "paused" if each in paused else "running"} for each in there}

    def info(n_workers=5):
        """Tell of five as Dask 2025.4 to 2026.6 do, and of all where asked for -1."""
        return {"workers": dict(islice(statuses.items(), None if n_workers < 0 else n_workers))}

    client = SimpleNamespace(
        status="running",
        scheduler_info=info,
        nthreads=lambda: dict.fromkeys(there, 1),
        processing=lambda: {each: ["solve"] if each in busy else [] for each in there},
        call_stack=lambda: {each: {"solve": ()} for each in executing},
        who_has=lambda _: {"solve": ("a",)},
    )
    assert cluster.Cluster(client)._makes_progress([]) is goes_on
    client.who_has = lambda _: {"solve": ()}  # lost, with what it is made of
    assert cluster.Cluster(client)._makes_progress([]) is (goes_on and bool(busy))


def test_a_worker_lost_while_it_is_asked_is_no_lost_cluster():
    """It was paused, its memory being nearly full, and is killed for it just then."""

    def call_stack():
        raise CommClosedError("Stream is closed")

    client = SimpleNamespace(
        status="running",
        scheduler_info=lambda n_workers: {"workers": {"a": {"status": "paused"}}},
        nthreads=lambda: {"a": 1},
        processing=lambda: {"a": ["solve"]},
        call_stack=call_stack,
    )
    assert cluster.Cluster(client)._makes_progress([])
