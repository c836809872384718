"""The cost model of docs/scale.md follows its own rules; what it predicts is measured elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
import scale_model as model


@pytest.fixture
def job():
    return model.Job((10**8, 10**7), 10**10, 128)


def cost(job, where, side=0, **options):
    return model.half_sweep(job, where, side, **{"streamed": False, "collective": True} | options)


@pytest.mark.parametrize("side", [0, 1])
def test_lengths_have_the_mean_of_the_data(job, side):
    assert job.lengths(side).mean() == pytest.approx(job.entries / job.rows[side], rel=1e-9)
    assert job.work(side).bytes == pytest.approx(job.entries * (4 * 128 + 8), rel=1e-9)


def test_rows_are_shared_out_and_coordinates_are_not(job):
    one = cost(job, model.H200)
    eight = cost(job, replace(model.H200, devices=8))
    for part in ("gather", "solve", "rows"):
        assert getattr(eight, part) == pytest.approx(getattr(one, part) / 8)
    # each rotates all of the fixed side, 2 n k^2, and multiplies out its share, n k^2
    assert eight.coordinates == pytest.approx(one.coordinates * (2 + 1 / 8) / 3)


@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (8, 1), (8, 4)])
def test_every_device_fetches_what_it_lacks(job, devices, nodes):
    """At one byte a second, seconds are the bytes into each device, or into each node."""
    slow = replace(model.H200, devices=devices, nodes=nodes, peer=1.0, network=np.inf, link=np.inf)
    n = devices * nodes
    fixed = job.factor_bytes(1)
    assert cost(job, slow, collective=False).exchange == pytest.approx(fixed * (n - 1) / n)
    assert cost(job, slow).exchange == pytest.approx(fixed * (devices - 1) / n)
    slow = replace(slow, peer=np.inf, network=1.0)
    remote = fixed * (n - devices) / n  # what a node lacks
    assert cost(job, slow).exchange == pytest.approx(remote)
    assert cost(job, slow, collective=False).exchange == pytest.approx(devices * remote)


def test_nothing_is_exchanged_alone(job):
    for collective in (True, False):
        assert cost(job, model.H200, collective=collective).exchange == 0


def test_streams_hide_behind_rows_until_they_are_longer(job):
    resident, streamed = (cost(job, model.H200, streamed=s) for s in (False, True))
    assert streamed.stream == pytest.approx(12 * job.entries / model.H200.link)
    assert streamed.total == resident.total
    slow = replace(model.H200, link=1e9)
    assert cost(job, slow, streamed=True).total == pytest.approx(120 + resident.coordinates)


def test_a_side_that_no_device_holds_is_named(job):
    huge = replace(job, rows=(10**9, 10**7))
    words = "\n".join(model.answer("huge", huge, model.H200))
    assert "does not fit" in words
    assert "with k = " in words
