"""What a cluster trains on: matrices, Interactions, shards and collections of Dask."""

import operator
import re
import threading
from contextvars import ContextVar
from functools import partial

import dask.array as da
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from checkpoint.common import assert_same
from distributed import Client

from cluster.common import (
    DATA,
    count_solves,
    difference,
    explicit,
    fit,
    fit_on,
    implicit,
    wait_until,
)
from gpu_als import Interactions
from gpu_als.dask import DaskInteractions
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError, NotFiniteError


def triples(matrix=DATA, dtype=np.float64):
    entries = matrix.tocoo()
    columns = {"user": entries.row, "item": entries.col, "value": entries.data.astype(dtype)}
    return pd.DataFrame(columns).sample(frac=1, random_state=5)


def frame(table, npartitions=3):
    return dd.from_pandas(table, npartitions=npartitions, sort=False)


def assert_as_in_memory(found, matrix=DATA, make=explicit, **options):
    expected = fit(make(**options), matrix)
    rounding = 1e-10 if found.user_factors.dtype == np.float64 else 1e-5
    assert difference(found, expected) <= rounding
    assert found.report_.losses == pytest.approx(expected.report_.losses, rel=rounding)
    assert found.report_.entries == expected.report_.entries


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [(sp.csc_matrix, np.float32), (sp.coo_array, np.float64), (np.array, np.float64)],
)
def test_a_matrix(client, dtype, convert):
    matrix = DATA.astype(np.float64) / 3  # which float32 rounds
    source = convert(matrix.toarray())
    found = fit_on(client, explicit(dtype=dtype), source)
    assert_as_in_memory(found, matrix, dtype=dtype)


def test_interactions_with_ids(client):
    ids = [f"u{n:02}" for n in range(DATA.shape[0])], list(range(7, 7 + DATA.shape[1]))
    data = Interactions.from_matrix(DATA, user_ids=ids[0], item_ids=ids[1])
    found = fit_on(client, explicit(), data)
    assert found.user_ids.tolist() == ids[0]
    assert found.item_ids.tolist() == ids[1]
    assert found.user_index("u03") == 3
    assert_as_in_memory(found)


@pytest.mark.parametrize("make", [explicit, implicit])
def test_a_folder_of_shards(client, make, tmp_path):
    ids = [f"u{n:02}" for n in range(DATA.shape[0])], None
    data = Interactions.from_matrix(DATA, user_ids=ids[0])
    ShardedMatrix.from_matrix(data, tmp_path / "s", shard_bytes=900)
    shards = ShardedMatrix.open(tmp_path / "s")
    assert len(shards.users) > 3
    found = fit_on(client, make(dtype=np.float64), shards)
    assert found.user_ids.tolist() == ids[0]
    assert_as_in_memory(found, make=make, dtype=np.float64)


@pytest.mark.parametrize("dtype", [np.float64, bool])
def test_a_data_frame(client, dtype):
    """Its largest numbers say how many users and items there are."""
    table = triples(dtype=dtype)
    matrix = sp.csr_matrix((table["value"].astype(float), (table["user"], table["item"])))
    assert matrix.shape == (70, 40)
    found = fit_on(client, implicit(dtype=np.float64), frame(table))
    assert_as_in_memory(found, matrix, implicit, dtype=np.float64)


def test_a_data_frame_of_two_columns_and_a_given_shape(client):
    data = frame(triples()[["user", "item"]])
    model = fit(implicit(dtype=np.float64), DaskInteractions(client, data, shape=DATA.shape))
    ones = sp.csr_matrix((np.ones(DATA.nnz), DATA.indices, DATA.indptr), shape=DATA.shape)
    assert_as_in_memory(model, ones, implicit, dtype=np.float64)


def test_values_of_one_user_and_item_are_added_up(client):
    """Within a partition and between partitions."""
    table = pd.concat([triples(), triples()]).sample(frac=1, random_state=7)
    data = DaskInteractions(client, frame(table, 4), shape=DATA.shape)
    assert data.nnz == DATA.nnz
    assert_as_in_memory(fit(explicit(), data), DATA * 2)


def test_a_data_frame_with_empty_partitions(client):
    data = frame(triples(), 4)
    data = DaskInteractions(client, data[data["user"] > 60], shape=DATA.shape)
    matrix = DATA.copy().tolil()
    matrix[:61] = 0
    assert_as_in_memory(fit(explicit(), data), matrix.tocsr())


@pytest.mark.parametrize("block", [np.array, sp.csr_matrix], ids=["dense", "sparse"])
def test_an_array(client, block):
    array = da.from_array(DATA.toarray(), chunks=(23, 17)).map_blocks(block)
    assert_as_in_memory(fit_on(client, explicit(), array))


def test_how_a_collection_is_cut_does_not_matter_to_the_bit(client):
    fits = [
        fit(explicit(), DaskInteractions(client, frame(triples(), n), shape=DATA.shape))
        for n in (1, 5)
    ]
    assert_same(*fits)


def test_data_serve_several_fits_of_either_dtype(client):
    data = DaskInteractions(client, frame(triples(DATA / 3)), shape=DATA.shape)
    for dtype in (np.float32, np.float64):
        assert_as_in_memory(fit(explicit(dtype=dtype), data), DATA / 3, dtype=dtype)
    assert_as_in_memory(fit(implicit(), data), DATA / 3, implicit)


def test_a_model_goes_on_from_its_factors(client):
    data = DaskInteractions(client, DATA)
    expected = fit(explicit(iterations=4, dtype=np.float64))
    once = fit(explicit(dtype=np.float64), data)
    assert difference(fit(once, data, warm_start=True), expected) <= 1e-10


def test_held_out_ratings_may_be_of_any_kind_that_they_are_in_one_process(client):
    held_out = DATA.tocoo()
    validation = held_out.row[:50], held_out.col[:50], held_out.data[:50]
    found = fit_on(client, explicit(), validation=validation)
    expected = fit(explicit(), validation=validation)
    assert [each["rmse"] for each in found.report_.metrics] == pytest.approx(
        [each["rmse"] for each in expected.report_.metrics], rel=1e-5
    )


def test_what_a_model_holds_stays_with_the_client(client, tmp_path):
    """Workers that look at the data first get no estimator, which may hold what has no copy."""
    shards = ShardedMatrix.from_matrix(DATA, tmp_path / "s")
    for make in (implicit, explicit):
        model = make(iterations=1)
        model.lock = threading.Lock()
        for source in (shards, frame(triples(dtype=np.float32))):
            assert np.isfinite(fit_on(client, model, source).user_factors).all()


# Refused


def refuse(client, source, message, error=InputError, **how):
    with pytest.raises(error, match=message):
        DaskInteractions(client, source, **how)


def test_frames_that_cannot_be_used(client):
    table = triples()
    refuse(client, frame(table.assign(more=1)), "pass a DataFrame of user, item and perhaps value")
    refuse(client, frame(table[["user"]]), re.escape("found the columns ['user']"))
    refuse(client, frame(table.assign(user="ann")), "column 'user' holds .*; pass row numbers from")
    refuse(
        client, frame(table.assign(user=-table["user"])), "column 'user' holds -6[0-9]; pass row"
    )
    refuse(client, frame(table.assign(item=0.5)), "column 'item' holds float64; pass row numbers")
    refuse(client, frame(table.assign(value="good")), "column 'value' holds .*; pass numbers")
    refuse(client, frame(table.iloc[:0], 1), "there must be a user and an item")
    for shape in ((69, 40), (70, 39), (70,), 70, [70, 40], "ab"):
        refuse(client, frame(table), "the interactions need at least", shape=shape)


def test_values_that_are_no_numbers_are_refused_by_workers(client):
    """And named with their rows and columns, whatever block they are in."""
    table, bad = triples(), DATA.toarray()
    table.loc[(table["user"] == 64) & (table["item"] == 20), "value"] = np.nan
    refuse(client, frame(table), r"nan at \(row, column\) \(64, 20\)", NotFiniteError)
    bad[63, 33] = np.inf
    blocks = da.from_array(bad, chunks=20)
    refuse(client, blocks, r"inf at \(row, column\) \(63, 33\)", NotFiniteError)
    table = triples().assign(value=1e308)
    twice = frame(pd.concat([table, table]))
    refuse(client, twice, "one user and item add up to infinity", NotFiniteError)


def test_arrays_that_cannot_be_used(client):
    refuse(client, da.ones(5, chunks=2), "a Dask array of two dimensions")
    array = da.ones((5, 4), chunks=2)
    refuse(client, array[array.sum(axis=1) > 0], "call compute_chunk_sizes")
    refuse(client, array, "shape goes with a Dask DataFrame", shape=(5, 4))
    refuse(client, DATA, "shape goes with a Dask DataFrame", shape=DATA.shape)
    refuse(client, da.ones((0, 4), chunks=2), "there must be a user and an item")


def test_data_twice_wrapped_are_refused(client):
    refuse(client, DaskInteractions(client, DATA), "these are DaskInteractions already")


def test_what_is_no_client_is_refused(client):
    refuse(client.cluster, DATA, "client must be a distributed.Client")


def test_a_client_need_not_be_the_default_one(client, monkeypatch):
    with Client(client.scheduler.address, set_as_default=False) as other:
        monkeypatch.setattr(distributed.client, "_global_clients", {})
        monkeypatch.setattr(distributed.client, "_current_client", ContextVar("no", default=None))
        found = fit_on(other, explicit())
        monkeypatch.undo()
    assert_as_in_memory(found)


def test_a_client_in_asynchronous_mode_is_refused(client):
    async def connect():
        async with Client(client.scheduler.address, asynchronous=True) as other:
            refuse(other, DATA, "client must be a distributed.Client that is not asynchronous")

    client.sync(connect)


def too_large(value=1e30):
    matrix = DATA.astype(np.float64)
    matrix.data[matrix.indptr[41]] = value
    return matrix


def test_values_too_large_for_float32_are_named_with_their_row(client, tmp_path):
    sources = (
        too_large(),
        ShardedMatrix.from_matrix(
            too_large(), tmp_path / "s", value_type="float32", shard_bytes=900
        ),
        frame(triples(too_large())),
        frame(triples(too_large(1e60))),
    )
    for source in sources:
        with pytest.raises(InputError, match=r"at \(row, column\) \(41, [0-9]+\)"):
            fit_on(client, explicit(), source)


def test_held_out_ratings_of_other_ids_are_refused(client):
    data, other = (
        Interactions.from_matrix(DATA, user_ids=np.arange(first, first + DATA.shape[0]))
        for first in (1, 2)
    )
    with pytest.raises(InputError, match="validation: its user_ids are not those of ratings"):
        fit_on(client, explicit(), data, validation=other)
    assert fit_on(client, explicit(), data, validation=data).report_.metrics


def test_observation_weights_are_refused(client):
    with pytest.raises(InputError, match="sample_weight goes with ratings in memory"):
        fit_on(client, explicit(), sample_weight=DATA)


# Several fits at a time, and threads


def test_two_fits_at_once_on_one_client(client):
    data = DaskInteractions(client, DATA)
    models = [explicit(random_state=seed) for seed in (3, 4)]
    threads = [threading.Thread(target=fit, args=(model, data)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, seed in zip(models, (3, 4), strict=True):
        assert_same(model, fit(explicit(random_state=seed), data))


def test_an_error_lets_go_of_what_workers_hold_even_while_it_is_kept(client):
    with pytest.raises(ZeroDivisionError) as error:
        fit_on(client, explicit(), callback=lambda *_: 1 / 0)
    wait_until(lambda: not any(client.has_what().values()))
    assert error.traceback


def test_an_error_of_a_task_lets_go_of_what_workers_hold_even_while_it_is_kept(client):
    fail_at_the_third = partial(operator.getitem, [None] * 3)  # there are items 1 and 2
    client.run(count_solves, fail_at_the_third, workers=[min(client.nthreads())])
    with pytest.raises(IndexError) as error:
        fit_on(client, explicit(iterations=5))
    wait_until(lambda: not any(client.has_what().values()))
    assert error.traceback
