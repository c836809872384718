"""The course of a fit on a cluster: callbacks, interrupts, checkpoints, reports."""

import gc
import os
import signal
import warnings

import dask.array
import numpy as np
import pytest
import scipy.sparse as sp
from checkpoint.common import assert_same, course, state

from cluster.common import (
    DATA,
    HELD_OUT,
    difference,
    explicit,
    fetched_blocks,
    fit,
    fit_on,
    forget_fetched,
    implicit,
    results_stay,
    wait_until,
)
from gpu_als import StopTraining
from gpu_als.dask import DaskInteractions, cluster, engine
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import BackendError, CheckpointError
from gpu_als.train.checkpoint import Saved


def test_callbacks_see_the_model_as_in_one_process(client):
    def watched(data):
        seen = []
        model = implicit(calculate_training_loss=True, dtype=np.float64)

        def watch(iteration, seconds, loss):
            seen.append((iteration, loss, model.user_factors.copy()))

        return fit(model, data, callback=watch), seen

    model, seen = watched(DaskInteractions(client, DATA))
    _, expected = watched(DATA)
    assert [n for n, *_ in seen] == [0, 1]
    assert [loss for _, loss, _ in seen] == pytest.approx([loss for _, loss, _ in expected], 1e-10)
    for (*_, found), (*_, wanted) in zip(seen, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(model.user_factors, seen[-1][-1])


def test_stop_training_keeps_the_factors_of_its_iteration(client):
    def stop(iteration, *_):
        if iteration == 1:
            raise StopTraining

    found = fit_on(client, explicit(iterations=5), callback=stop)
    assert found.report_.stopped == "callback"
    assert difference(found, fit_on(client, explicit(iterations=2))) == 0


def test_an_interrupt_keeps_the_factors_of_the_last_whole_half_sweeps(client, monkeypatch):
    """What Ctrl-C sends comes while the client waits for tasks of the second iteration."""
    data = DaskInteractions(client, DATA)
    collect, sent = cluster.Cluster.collect, []

    def interrupted(self, futures, needed=()):
        if model.report_ is not None and model.report_.iterations == 1 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return collect(self, futures, needed)

    model = implicit()
    monkeypatch.setattr(cluster.Cluster, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data)
    assert sent
    assert difference(model, fit(implicit(iterations=1), data)) == 0


def test_errors_of_callbacks_and_of_writing_are_not_those_of_a_cluster(client, tmp_path):
    def fail(*_):
        raise OSError("the disk of the callback is full")

    with pytest.raises(OSError, match="the disk of the callback is full"):
        fit_on(client, explicit(), callback=fail)

    def remove_folder(*_):
        (tmp_path / "f").rmdir()

    (tmp_path / "f").mkdir()
    with pytest.raises(FileNotFoundError):
        fit_on(client, explicit(), callback=remove_folder, checkpoint=tmp_path / "f" / "s")


def test_a_stopped_fit_goes_on_to_the_bit(client, tmp_path):
    data, how = DaskInteractions(client, DATA), {"validation": HELD_OUT}
    options = {"iterations": 5, "regularization": 0.01, "bias": False}
    whole = fit(explicit(**options), data, **how)
    file = state(tmp_path, explicit(**options), iterations=4, ratings=data, **how)
    assert_same(fit(explicit(**options), data, resume=file, **how), whole)


def test_a_fit_goes_on_wherever_the_same_data_lie(client, tmp_path):
    """In memory, on disk, on workers; in one process and on a cluster."""
    shards = ShardedMatrix.from_matrix(DATA, tmp_path / "m", shard_bytes=900)
    collection = dask.array.from_array(DATA.toarray(), chunks=(7, 9))
    places = DATA, shards, *(DaskInteractions(client, each) for each in (DATA, shards, collection))
    options = {"iterations": 4, "dtype": np.float64}
    whole = fit(explicit(**options), DATA)
    for number, place in enumerate(places):
        (tmp_path / f"{number}").mkdir()
        file = state(tmp_path / f"{number}", explicit(**options), iterations=2, ratings=place)
        for then in places if number == 0 else places[:1]:
            found = fit(explicit(**options), then, resume=file)
            assert difference(found, whole) <= 1e-10
            assert found.report_.iterations == 4
            assert found.report_.losses == pytest.approx(whole.report_.losses, 1e-10)


def test_a_state_of_other_data_is_refused(client, tmp_path):
    file = state(tmp_path, explicit(), iterations=1, ratings=DaskInteractions(client, DATA))
    other = DATA.copy()
    other.data[0] += 1
    with pytest.raises(CheckpointError, match="different: ratings"):
        fit_on(client, explicit(), other, resume=file)


def test_what_is_saved_holds_what_was_sent_between_workers(client, tmp_path):
    file = tmp_path / "s.npz"
    report = fit_on(client, explicit(), checkpoint=file).report_
    assert course(Saved.read(file).report) == course(report)
    assert "bytes between workers" in str(report)


def test_what_is_told_of_transfers_is_what_workers_fetched(client):
    """As many pieces, and their bytes but for what goes with each.

    Dask may move a piece besides; not here.
    """
    rng = np.random.default_rng(19)
    data = sp.csr_matrix(rng.integers(0, 2, (400, 300)), dtype=np.float32)
    client.run(forget_fetched)
    with results_stay(client):
        report = fit_on(client, implicit(factors=32, dtype=np.float64), data).report_
    expected = [n * 32 * 8 for n in (300, 400)]
    assert report.transferred == [tuple(expected)] * 2
    fetched = [size for each in client.run(fetched_blocks).values() for size in each]
    assert len(fetched) == 2 * 2 * 2
    told = sum(map(sum, report.transferred))
    assert told <= sum(fetched) <= told + len(fetched) * (32 * 32 * 8 + 2000)  # a Gram, and names


def test_workers_hold_no_more_and_no_longer_where_tasks_take_long(client, monkeypatch):
    """The client looks after the cluster many times in each half-sweep, and collects no garbage."""
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.001)

    def held():
        return sum(map(len, client.has_what().values()))

    def look(iteration, *_):
        if iteration == 0:
            at_first.append(held())
        else:
            wait_until(lambda: held() <= at_first[0])

    at_first = []
    gc.collect()
    gc.disable()
    try:
        fit_on(client, implicit(iterations=4), callback=look)
        wait_until(lambda: held() == 0)
    finally:
        gc.enable()


def test_the_progress_bar_moves(client, capsys):
    fit_on(client, explicit(iterations=3), show_progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "loss=" in shown


def test_large_data_are_sent_without_a_warning_and_the_setting_is_as_before(client):
    """Warnings are errors here, and Dask warns from 10 MB."""
    rng = np.random.default_rng(23)
    data = sp.csr_matrix(rng.random((1300, 1200)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_on(client, implicit(factors=2, iterations=1), data)
    with pytest.warns(UserWarning, match="Sending large graph"):
        client.submit(len, data.data).result()


def test_a_gpu_that_the_client_lacks_is_missed_before_training(client, monkeypatch):
    def none_here(*_):
        raise BackendError("no GPU")

    monkeypatch.setattr(engine.BackendChoice, "get", none_here)
    for model in (implicit(use_gpu=True), explicit(backend="cupy")):
        with pytest.raises(BackendError, match=r"which is to have the model, .*\(no GPU\).*=None"):
            fit_on(client, model)


def test_a_gpu_that_workers_lack_is_missed_before_training(client, monkeypatch):
    monkeypatch.setattr(engine, "_check_client", lambda choice: None)
    with pytest.raises(BackendError, match="a worker says: "):
        fit_on(client, implicit(use_gpu=True))


def test_securing_changes_nothing(client, monkeypatch):
    """After every half-sweep, or never in so short a fit."""
    expected = fit_on(client, explicit(iterations=3), validation=HELD_OUT)
    monkeypatch.setattr(engine, "_SECURE_SECONDS", 0)
    monkeypatch.setattr(engine, "_SECURE_SHARE", 1e9)
    assert_same(fit_on(client, explicit(iterations=3), validation=HELD_OUT), expected)
