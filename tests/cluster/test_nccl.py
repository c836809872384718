"""Factors that GPUs exchange by NCCL, over stand-ins for both: what a fit finds is the same.

With real GPUs it takes several of them, and has not been run.
"""

import os
import shutil
import signal
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import dask
import fake_nccl
import numpy as np
import pytest
from checkpoint.common import assert_same
from test_cupy_backend import has_gpu

from cluster import stand_in
from cluster.common import (
    DATA,
    HELD_OUT,
    CountSolves,
    DieOnce,
    all_are_back,
    count_solves,
    difference,
    explicit,
    fetched_blocks,
    fit,
    fit_on,
    forget_fetched,
    go_on,
    implicit,
    leave_alone,
    local_cluster,
    pause,
    wait_until,
)
from gpu_als import StopTraining
from gpu_als.dask import DaskInteractions, cluster, engine, nccl
from gpu_als.dask.cluster import ExchangeError
from gpu_als.errors import ClusterWarning

MAKE = {
    "implicit exact": lambda **options: implicit(use_gpu=None, **options),
    "implicit cg": lambda **options: implicit(use_gpu=None, use_cg=True, **options),
    "explicit bias": lambda **options: explicit(backend="auto", **options),
}
VALIDATION = {"held out": HELD_OUT, "trained": DATA}
WORKERS = 3


@pytest.fixture(scope="module")
def cluster_of_gpus():
    """Yield a client of three workers with stand-ins for GPUs."""
    with local_cluster(WORKERS, preload=["cluster.stand_in"]) as client:
        yield client
    for folder in Path(tempfile.gettempdir()).glob(f"fake_nccl-{os.getuid()}-*"):
        shutil.rmtree(folder)


@pytest.fixture
def gpus(cluster_of_gpus):
    """Yield a client of workers with stand-ins for GPUs, with nothing left behind."""
    yield cluster_of_gpus
    all_are_back(cluster_of_gpus, WORKERS)
    assert not any(cluster_of_gpus.run(lambda: nccl._member is not None).values())
    cluster_of_gpus.run(leave_alone)
    cluster_of_gpus.run(stand_in.leave_alone)


@pytest.fixture(scope="module")
def by_dask(cluster_of_gpus):
    """Return a function that fits with factors that go as Dask sends them, once in each way."""

    @cache
    def fitted(case, validation=None, **options):
        how = {} if validation is None else {"validation": VALIDATION[validation]}
        with dask.config.set({"gpu-als.nccl": False}):
            return fit_on(cluster_of_gpus, MAKE[case](**options), **how)

    return fitted


def one_of(client):
    return [next(iter(client.nthreads()))]


def kill_one(client):
    """Kill a worker, and wait until Dask knows."""
    (victim,) = one_of(client)
    os.kill(client.run(os.getpid)[victim], signal.SIGKILL)
    wait_until(lambda: victim not in client.nthreads())


def exchanged(client):
    return client.run(stand_in.broadcasts)


def test_the_same_to_the_bit_and_nothing_goes_through_hosts(gpus, by_dask):
    for name, make in MAKE.items():
        expected = by_dask(name)
        before = sum(exchanged(gpus).values())
        gpus.run(forget_fetched)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fit_on(gpus, make())
        assert_same(found, expected)
        assert found.report_.transferred == expected.report_.transferred
        assert found.report_.device == f"Dask: {WORKERS} x stand-in"
        assert found.report_.user_rows == expected.report_.user_rows
        # When they connect, and in each half-sweep, every member takes part in a broadcast of each.
        assert sum(exchanged(gpus).values()) - before == 5 * WORKERS**2, name
        assert not any(gpus.run(fetched_blocks).values())


def test_states_outlast_half_sweeps(gpus, by_dask, tmp_path):
    """The best factors, those a callback sees, and those in a file."""
    how = {"validation": HELD_OUT}
    options = {"bias": False, "regularization": 0.01, "iterations": 4}
    expected = by_dask("explicit bias", "held out", **options)
    assert 1 < expected.report_.best_iteration < 4
    make = MAKE["explicit bias"]
    found = fit_on(gpus, make(**options), checkpoint=tmp_path / "s.npz", **how)
    assert_same(found, expected)
    assert_same(fit_on(gpus, make(**options), resume=tmp_path / "s.npz", **how), expected)
    seen = []

    def look(iteration, *_):
        seen.append(model.user_factors.copy())
        if iteration == 1:
            raise StopTraining

    model = implicit(use_gpu=None, iterations=3)
    fit_on(gpus, model, callback=look)
    shorter = by_dask("implicit exact")
    np.testing.assert_array_equal(seen[1], shorter.user_factors)
    assert difference(model, shorter) == 0


def test_a_member_killed_in_a_half_sweep_changes_nothing(gpus, by_dask, tmp_path):
    expected = by_dask("implicit cg", iterations=3)
    gpus.run(count_solves, DieOnce(4, tmp_path / "died"))
    with pytest.warns(ClusterWarning, match="do not go by NCCL from here on.* a worker was lost"):
        found = fit_on(gpus, MAKE["implicit cg"](iterations=3))
    assert (tmp_path / "died").exists()
    assert difference(found, expected) == 0
    assert found.report_.losses == expected.report_.losses


def test_a_member_lost_between_half_sweeps_costs_those_since_factors_were_secured(
    gpus, by_dask, monkeypatch
):
    monkeypatch.setattr(engine, "_SECURE_SECONDS", 0)
    monkeypatch.setattr(engine, "_SECURE_SHARE", 1e9)
    expected = by_dask("implicit exact", iterations=4)
    counter = CountSolves()
    gpus.cluster.scheduler.add_plugin(counter)

    def kill(iteration, *_):
        if iteration == 2:
            kill_one(gpus)

    with pytest.warns(ClusterWarning, match="a worker was lost"):
        found = fit_on(gpus, implicit(use_gpu=None, iterations=4), callback=kill)
    assert difference(found, expected) == 0
    gpus.cluster.scheduler.remove_plugin(counter.name)
    assert counter.solves == 2 * WORKERS * 4  # nothing is done again


def test_the_best_factors_outlast_a_member_that_is_lost_in_the_last_callback(
    gpus, by_dask, tmp_path
):
    how = {"validation": DATA}
    expected = by_dask("explicit bias", "trained")
    assert expected.report_.best_iteration == 2

    def kill(iteration, *_):
        if iteration == 1:
            kill_one(gpus)

    how |= {"callback": kill, "checkpoint": tmp_path / "s.npz"}
    with pytest.warns(ClusterWarning, match="a worker was lost"):
        found = fit_on(gpus, explicit(backend="auto"), **how)
    assert difference(found, expected) == 0


def test_a_member_lost_while_factors_are_fetched(gpus, by_dask, monkeypatch):
    expected = by_dask("implicit exact")
    fetch, killed = cluster.Cluster._fetch, []

    def kill_first(self, futures, needed):
        if futures[0].key.startswith("host_rows") and not killed:
            killed.append(kill_one(gpus))
        return fetch(self, futures, needed)

    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.2)
    monkeypatch.setattr(cluster.Cluster, "_fetch", kill_first)
    with pytest.warns(ClusterWarning, match="a worker was lost"):
        found = fit_on(gpus, implicit(use_gpu=None))
    assert killed
    assert difference(found, expected) == 0


def test_a_member_that_is_paused_is_done_without(gpus, by_dask, monkeypatch):
    expected = by_dask("implicit exact", iterations=4)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.2)

    def fill(iteration, *_):
        if iteration == 1:
            gpus.run(pause, workers=one_of(gpus))

    with pytest.warns(ClusterWarning, match=r"lost, or paused because its memory is nearly full"):
        found = fit_on(gpus, implicit(use_gpu=None, iterations=4), callback=fill)
    gpus.run(go_on)
    assert difference(found, expected) == 0


def test_an_interrupt_on_the_way_back_leaves_the_factors_from_which_it_goes(
    gpus, by_dask, monkeypatch
):
    """Those that the client got last: here, the first ones."""
    solve, solved = engine.DaskSide.solve, []

    def interrupted(self, fixed):
        solved.append(self.group)
        if len(solved) == 3:
            raise ExchangeError("as if")
        if len(solved) == 4:  # on the way back
            raise KeyboardInterrupt
        return solve(self, fixed)

    monkeypatch.setattr(engine.DaskSide, "solve", interrupted)
    model = implicit(use_gpu=None)
    with pytest.raises(KeyboardInterrupt), pytest.warns(ClusterWarning, match="as if"):
        fit_on(gpus, model)
    monkeypatch.undo()
    assert solved[2] is not None
    assert solved[3] is None
    first = by_dask("implicit exact", iterations=0)
    assert difference(model, first) == 0


def test_a_group_whose_client_is_gone_is_no_hindrance(gpus, by_dask):
    gpus.run(stand_in.be_a_member_of_what_is_no_more)
    expected = by_dask("implicit exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(fit_on(gpus, implicit(use_gpu=None)), expected)


def test_rows_are_there_before_workers_wait_for_each_other(gpus, tmp_path, monkeypatch):
    """One of them has its rows when the client waits for that, or when that would be too late."""
    loads, collect, form, early = tmp_path / "loads", cluster.Cluster.collect, nccl.Group.form, []

    def collect_and_load(self, futures, needed=()):
        if futures[0].key.startswith("is_there"):
            loads.touch()
        return collect(self, futures, needed)

    def form_and_look(*args):
        early.append(not loads.exists())
        loads.touch()
        return form(*args)

    gpus.run(stand_in.make_sides_when, str(loads), workers=one_of(gpus))
    monkeypatch.setattr(cluster.Cluster, "collect", collect_and_load)
    monkeypatch.setattr(nccl.Group, "form", form_and_look)
    fit_on(gpus, implicit(use_gpu=None))
    assert early == [False]


def test_an_nccl_that_does_not_begin(gpus, by_dask):
    expected = by_dask("explicit bias")
    gpus.run(stand_in.cannot_begin, "no socket interface")
    with pytest.warns(ClusterWarning, match="NcclError: no socket interface"):
        found = fit_on(gpus, explicit(backend="auto"))
    assert_same(found, expected)


def test_leaving_a_lost_cluster_hides_no_error():
    client = SimpleNamespace(status="closed", nthreads=None)
    cluster.Cluster(client).call_on(["tcp://127.0.0.1:1"], print)
    client.status = "running"
    cluster.Cluster(client).call_on(["tcp://127.0.0.1:1"], print)


def test_gpus_that_nccl_does_not_connect(gpus, by_dask):
    expected = by_dask("explicit bias")
    gpus.run(stand_in.cannot_connect, "unhandled system error", workers=one_of(gpus))
    with pytest.warns(ClusterWarning, match="NcclError: unhandled system error"):
        found = fit_on(gpus, explicit(backend="auto"))
    assert_same(found, expected)


def test_an_error_that_nccl_sees_in_an_exchange(gpus, by_dask):
    expected = by_dask("explicit bias", iterations=4)

    def break_network(iteration, *_):
        if iteration == 1:
            gpus.run(stand_in.have_error, "remote error")

    with pytest.warns(ClusterWarning, match="NcclError: remote error"):
        found = fit_on(gpus, explicit(backend="auto", iterations=4), callback=break_network)
    assert_same(found, expected)


def test_an_exchange_that_never_ends(gpus, by_dask):
    """As behind a firewall: one member waits for what the other does not send."""
    expected = by_dask("implicit exact")
    gpus.run(lambda: setattr(nccl, "_TIMEOUT_SECONDS", 0.5))
    gpus.run(stand_in.keep_silent, workers=one_of(gpus))
    with pytest.warns(ClusterWarning, match=r"not done after 0\.5 seconds"):
        found = fit_on(gpus, implicit(use_gpu=None))
    assert_same(found, expected)


def test_two_fits_at_once(gpus, by_dask):
    """One of them has NCCL at most, and the other does without."""
    expected = by_dask("implicit exact", iterations=4)
    data = DaskInteractions(gpus, DATA)
    barrier, found = threading.Barrier(2), []

    def run():
        model = implicit(use_gpu=None, iterations=4)
        found.append(fit(model, data, callback=lambda *_: barrier.wait(200)))

    def run_both():
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with pytest.warns(ClusterWarning, match="another fit exchanges factors by NCCL"):
        run_both()
    assert len(found) == 2
    for each in found:
        assert difference(each, expected) == 0


def test_where_a_worker_has_no_nccl_or_shares_its_gpu_dask_sends(gpus, monkeypatch):
    before = sum(exchanged(gpus).values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(nccl.Group, "form", None)
        gpus.run(stand_in.share_a_gpu)
        fit_on(gpus, implicit(use_gpu=None))
        gpus.run(stand_in.have_no_nccl, workers=one_of(gpus))
        fit_on(gpus, implicit(use_gpu=None))
    assert sum(exchanged(gpus).values()) == before


def test_cupy_has_the_names_that_are_used():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's, where the library is missing
        real = pytest.importorskip("cupy.cuda.nccl")
    if not real.available:
        pytest.skip("NCCL is not installed")
    functions = "get_unique_id", "groupStart", "groupEnd", "NCCL_UINT8"
    methods = "broadcast", "check_async_error", "abort"
    assert all(hasattr(real, name) and hasattr(fake_nccl, name) for name in functions)
    for communicator in (real.NcclCommunicator, fake_nccl.NcclCommunicator):
        assert all(hasattr(communicator, name) for name in methods)
    assert len(real.get_unique_id()) == fake_nccl.IDENTITY_BYTES


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU that CuPy can use")
def test_a_group_of_one_on_a_gpu():
    """The calls are those that NCCL knows; with one GPU no more can be seen."""
    from gpu_als.backends import get_backend

    backend = get_backend("cupy")
    if nccl.gpu_for_nccl(backend) is None:
        pytest.skip("NCCL is not installed")
    member = nccl._Member("alone", "here", backend, 0)
    with backend.session():
        member.connect(backend.nccl().get_unique_id(), 1)
        own = backend.from_host(np.random.default_rng(5).random((7, 3), np.float32))
        found = member.gather(own, (0, 7))
        np.testing.assert_array_equal(backend.to_host(found), backend.to_host(own))
        member.leave()
    wait_until(lambda: member._communicator is None)
