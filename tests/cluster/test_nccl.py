"""Factors that GPUs exchange by NCCL, over stand-ins for both: what a fit finds is the same.

With real GPUs it takes several of them, and has not been run.
"""

import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import dask
import fake_nccl
import numpy as np
import pytest
from test_checkpoint import assert_same
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
    fetched_pieces,
    fit,
    fit_on,
    forget_fetched,
    implicit,
    leave_alone,
    local_cluster,
    wait_until,
)
from gpu_als import StopTraining
from gpu_als.dask import DaskInteractions
from gpu_als.distributed import engine, nccl
from gpu_als.errors import ClusterWarning

MAKE = {
    "implicit exact": lambda **options: implicit(use_gpu=None, **options),
    "implicit cg": lambda **options: implicit(use_gpu=None, use_cg=True, **options),
    "explicit bias": lambda **options: explicit(backend="auto", **options),
}


@pytest.fixture(scope="module")
def cluster_of_gpus():
    """Yield a function that returns a client of so many workers with stand-ins for GPUs."""
    preload = {"preload": ["cluster.stand_in"]}
    with ExitStack() as stack:
        yield cache(lambda number: stack.enter_context(local_cluster(number, **preload)))
    for folder in Path(tempfile.gettempdir()).glob(f"fake_nccl-{os.getuid()}-*"):
        shutil.rmtree(folder)


@pytest.fixture
def gpus(request, cluster_of_gpus):
    """Yield a client of two workers, or of as many as a test wants, with nothing left behind."""
    number = getattr(request, "param", 2)
    client = cluster_of_gpus(number)
    yield client
    all_are_back(client, number)
    assert not any(client.run(lambda: nccl._member is not None).values())
    client.run(leave_alone)
    client.run(stand_in.leave_alone)


def by_dask(client, model, data=DATA, **how):
    """Fit with factors that go as Dask sends them."""
    with dask.config.set({"gpu-als.nccl": False}):
        return fit_on(client, model, data, **how)


def one_of(client):
    return [next(iter(client.nthreads()))]


def exchanged(client):
    return client.run(stand_in.broadcasts)


@pytest.mark.parametrize("gpus", [2, 4], indirect=True)
def test_the_same_to_the_bit_and_nothing_goes_through_hosts(gpus):
    n_workers = len(gpus.nthreads())
    for name, make in MAKE.items():
        expected = by_dask(gpus, make(iterations=3))
        before = sum(exchanged(gpus).values())
        gpus.run(forget_fetched)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fit_on(gpus, make(iterations=3))
        assert_same(found, expected)
        assert found.report_.transferred == expected.report_.transferred
        assert found.report_.device == f"Dask: {n_workers} x stand-in"
        assert found.report_.user_rows == expected.report_.user_rows
        # Each half-sweep every member takes part in a broadcast of each.
        assert sum(exchanged(gpus).values()) - before == 6 * n_workers**2, name
        assert not any(gpus.run(fetched_pieces).values())


def test_states_outlast_half_sweeps(gpus, tmp_path):
    """The best factors, those a callback sees, and those in a file."""
    how = {"validation": HELD_OUT}
    make = lambda: explicit(backend="auto", bias=False, regularization=0.01, iterations=4)  # noqa: E731
    expected = by_dask(gpus, make(), **how)
    assert 1 < expected.report_.best_iteration < 4
    found = fit_on(gpus, make(), checkpoint=tmp_path / "s.npz", **how)
    assert_same(found, expected)
    assert_same(fit_on(gpus, make(), resume=tmp_path / "s.npz", **how), expected)
    seen = []

    def look(iteration, *_):
        seen.append(model.user_factors.copy())
        if iteration == 1:
            raise StopTraining

    model = implicit(use_gpu=None, iterations=3)
    fit_on(gpus, model, callback=look)
    shorter = by_dask(gpus, implicit(use_gpu=None, iterations=2))
    np.testing.assert_array_equal(seen[1], shorter.user_factors)
    assert difference(model, shorter) == 0


@pytest.mark.parametrize(
    ("case", "number"),
    [("implicit exact", 1), ("explicit bias", 4), ("implicit cg", 7)],
)
def test_a_member_killed_in_a_half_sweep_changes_nothing(gpus, case, number, tmp_path):
    make = MAKE[case]
    expected = by_dask(gpus, make(iterations=4))
    gpus.run(count_solves, DieOnce(number, tmp_path / "died"))
    with pytest.warns(ClusterWarning, match="do not go by NCCL from here on.* a worker was lost"):
        found = fit_on(gpus, make(iterations=4))
    assert (tmp_path / "died").exists()
    assert difference(found, expected) == 0
    assert found.report_.losses == expected.report_.losses


def test_a_member_lost_between_half_sweeps_costs_those_since_factors_were_secured(
    gpus, monkeypatch
):
    monkeypatch.setattr(engine, "_SECURE_SECONDS", 0)
    monkeypatch.setattr(engine, "_SECURE_SHARE", 1e9)
    expected = by_dask(gpus, implicit(use_gpu=None, iterations=5))
    counter = CountSolves()
    gpus.cluster.scheduler.add_plugin(counter)

    def kill(iteration, *_):
        if iteration == 2:
            (victim,) = one_of(gpus)
            os.kill(gpus.run(os.getpid)[victim], signal.SIGKILL)
            wait_until(lambda: victim not in gpus.nthreads())

    with pytest.warns(ClusterWarning, match="a worker was lost"):
        found = fit_on(gpus, implicit(use_gpu=None, iterations=5), callback=kill)
    assert difference(found, expected) == 0
    gpus.cluster.scheduler.remove_plugin(counter.name)
    assert counter.solves == 2 * 2 * 5  # nothing is done again


def test_gpus_that_nccl_does_not_connect(gpus):
    expected = by_dask(gpus, explicit(backend="auto"))
    gpus.run(stand_in.cannot_connect, "unhandled system error", workers=one_of(gpus))
    with pytest.warns(ClusterWarning, match="NcclError: unhandled system error"):
        found = fit_on(gpus, explicit(backend="auto"))
    assert_same(found, expected)


def test_an_error_that_nccl_sees_in_an_exchange(gpus):
    expected = by_dask(gpus, explicit(backend="auto", iterations=4))

    def break_network(iteration, *_):
        if iteration == 1:
            gpus.run(stand_in.have_error, "remote error")

    with pytest.warns(ClusterWarning, match="NcclError: remote error"):
        found = fit_on(gpus, explicit(backend="auto", iterations=4), callback=break_network)
    assert_same(found, expected)


def test_an_exchange_that_never_ends(gpus, monkeypatch):
    """As behind a firewall: one member waits for what the other does not send."""
    expected = by_dask(gpus, implicit(use_gpu=None))
    gpus.run(lambda: setattr(nccl, "_PATIENCE_SECONDS", 0.5))
    gpus.run(stand_in.keep_silent, workers=one_of(gpus))
    with pytest.warns(ClusterWarning, match=r"nothing came for 0\.5 seconds"):
        found = fit_on(gpus, implicit(use_gpu=None))
    assert_same(found, expected)


def test_two_fits_at_once(gpus):
    """One of them has NCCL at most, and the other does without."""
    expected = by_dask(gpus, implicit(use_gpu=None, iterations=4))
    data = DaskInteractions(gpus, DATA)
    barrier, found = threading.Barrier(2), []

    def run():
        model = implicit(use_gpu=None, iterations=4)
        found.append(fit(model, data, callback=lambda *_: barrier.wait(30)))

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
    member = nccl._Member("alone", backend, 0)
    with backend.session():
        member.connect(nccl._new_identity(), 1)
        own = backend.from_host(np.random.default_rng(5).random((7, 3), np.float32))
        found = member.gather(own, (0, 7))
        np.testing.assert_array_equal(backend.to_host(found), backend.to_host(own))
        member.leave()
    begin = time.monotonic()
    wait_until(lambda: member._communicator is None)
    assert time.monotonic() - begin < 10
