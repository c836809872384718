"""What plans decide, and what they say where a machine is too small."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_als.backends.native.library import library
from gpu_als.core.memory import FitShape, lay_out, most_factors, plan_device
from gpu_als.errors import BackendError, InputError
from gpu_als.train.planning import plan

GIB = 1 << 30
RATINGS = (1_000_000, 200_000, 500_000_000, 128)
LARGE = (100_000_000, 10_000_000, 10_000_000_000, 128)


def test_what_fits_stays_in_memory():
    found = plan(*RATINGS, host_memory=64 * GIB)
    assert found.fits
    assert not found.host.from_shards
    assert found.device is None
    # both orientations, of columns and values
    assert found.host.data >= 2 * 8 * RATINGS[2]
    assert found.host.factors == 4 * 1_200_000 * 129
    assert "on the CPU" in found.summary


def test_data_larger_than_memory_are_read_from_shards():
    found = plan(*RATINGS, host_memory=4 * GIB)
    assert found.fits
    assert found.host.from_shards
    assert found.host.total < 4 * GIB < plan(*RATINGS).host.total
    assert "gpu-als convert" in found.summary


def test_data_larger_than_the_device_pass_through_it():
    resident, streamed = (plan(*RATINGS, device_memory=size * GIB) for size in (80, 6))
    assert resident.device.part_bytes is None
    assert "all data stay" in resident.summary
    assert streamed.fits
    assert streamed.device.total <= 6 * GIB
    assert f"parts of {streamed.device.part_bytes:,} bytes" in streamed.summary
    assert resident.host.workspace == streamed.host.workspace == 0


@pytest.mark.parametrize("device", [None, 80])
def test_too_small_a_machine_is_told_what_would_fit(device):
    how = {"model": "implicit", "host_memory": 32 * GIB}
    if device:
        how["device_memory"] = device * GIB
    found = plan(*LARGE, **how)
    assert not found.fits
    assert f"{found.host.total:,} bytes of host memory, of which {32 * GIB:,}" in found.summary
    factors = next(int(option.split()[2]) for option in found.options if "factors" in option)
    assert plan(*LARGE[:3], factors, **how).fits
    assert not plan(*LARGE[:3], factors + 1, **how).fits
    assert all(option in found.summary for option in found.options)
    enough = {"host_memory": found.host.total} | ({"device_memory": 10**12} if device else {})
    assert plan(*LARGE, **how | enough).fits


def test_more_workers_are_an_option_where_the_other_side_fits():
    """A worker needs all of the other side three times, and only its share of its own."""
    entries, items = 100_000_000, 1_000_000
    found = plan(1_000_000, items, entries, 64, host_memory=GIB)
    (option,) = (option for option in found.options if "workers" in option)
    assert int(option.split()[0]) > 1
    assert not any(
        "workers" in option
        for option in plan(1_000_000, items, entries, 64, host_memory=GIB >> 1).options
    )


@pytest.mark.parametrize(("sides", "possible"), [(2.9, False), (3.5, True)])
def test_workers_with_less_than_the_other_side_three_times_are_no_option(sides, possible):
    """Of a thousand workers each has next to nothing of its own."""
    side = 1_000_000 * (64 + 1) * 4
    found = plan(10**6, 10**6, 10**8, 64, threads=1, host_memory=int(sides * side))
    assert any("workers" in option for option in found.options) == possible


def test_the_processors_are_an_option_where_only_the_device_is_too_small():
    found = plan(*RATINGS, device_memory=GIB // 4, host_memory=64 * GIB)
    assert not found.device_fits
    assert found.host_fits
    assert any("backend='numpy'" in option for option in found.options)
    assert plan(*RATINGS, host_memory=64 * GIB).fits


def test_nothing_is_allocated():
    """Not even a bit of each of these would be there."""
    found = plan(10**15, 10**14, 10**18, 10**4, host_memory=1 << 60, device_memory=1 << 50)
    assert not found.fits


def test_every_part_can_be_the_larger_one():
    base = plan(*RATINGS, threads=2).host
    compiled = library() is not None  # it has whole cache lines of the fixed side besides
    assert plan(*RATINGS[:3], 256, threads=2).host.factors > 1.9 * base.factors
    moved = RATINGS[0] * (128 + 1)  # the users, with their biases
    assert base.sweep == 4 * (moved + compiled * RATINGS[0] * 144)
    wide = plan(*RATINGS, threads=2, dtype=np.float64).host
    assert wide.sweep == 8 * (moved + compiled * RATINGS[0] * 136)
    assert wide.data > 1.4 * base.data
    assert plan(*RATINGS, threads=8).host.workspace == 4 * base.workspace
    assert plan(*RATINGS, threads=2, copies=3).host.factors == 3 * base.factors
    assert plan(*RATINGS, threads=2, bias=False).host.sweep == 4 * compiled * RATINGS[0] * 128


def test_entries_set_apart_copy_the_data():
    none, some = (plan(*RATINGS, model="implicit", ones=share).host for share in (0, 0.1))
    weights = 2 * 4  # of each entry with a system
    assert some.data - none.data == 2 * (8 - 0.1 * weights) * RATINGS[2]


def test_columns_take_eight_bytes_from_two_billion_entries_on():
    few, many = (plan(10**6, 10**6, nnz, 16).host.data for nnz in (2**31 - 1, 2**31))
    assert many - few > 2 * 4 * (2**31 - 2)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 5, 5, 5), "users"),
        ((5, 5, 26, 5), "nnz"),
        ((5, 5, 5, 0), "factors"),
        ((5, 5, 5, 5, {"model": "other"}), "model"),
        ((5, 5, 5, 5, {"ones": 0.5}), "ones"),
        ((5, 5, 5, 5, {"ones": 1.5, "model": "implicit"}), "ones"),
        ((5, 5, 5, 5, {"longest": 6}), "longest"),
        ((5, 5, 5, 5, {"host_memory": 0}), "host_memory"),
        ((5, 5, 5, 5, {"dtype": np.float16}), "dtype"),
        ((5, 5, 5, 5, {"threads": -1}), "num_threads"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, name):
    *numbers, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(InputError, match=name):
        plan(*numbers, **options)


@settings(max_examples=30)
@given(
    st.integers(1, 10**7),
    st.integers(1, 10**7),
    st.integers(1, 10**9),
    st.integers(1, 500),
    st.integers(26, 40),
)
def test_plans_keep_to_what_is_given(users, items, nnz, factors, exponent):
    found = plan(
        users,
        items,
        min(nnz, users * items),
        factors,
        host_memory=1 << exponent,
        device_memory=1 << exponent,
    )
    assert found.fits == (max(found.host.total, found.device.total) <= 1 << exponent)
    assert found.fits == (not found.options)
    assert min(value for value in vars(found.host).values()) >= 0


def test_a_refused_fit_is_told_how_many_factors_would_fit():
    shape = FitShape(10**6, 10**5, 10**8, 128, longest=10**5)
    with pytest.raises(BackendError, match=r"fewer factors \((\d+) would fit\)") as refused:
        plan_device(shape, GIB, 1 << 26)
    fewer = int(refused.value.args[0].split("(")[1].split()[0])
    assert lay_out(replace(shape, factors=fewer), GIB, 1 << 26).total <= GIB
    assert lay_out(replace(shape, factors=fewer + 1), GIB, 1 << 26).total > GIB


@given(st.integers(0, 99))
def test_the_most_that_fits_is_found(most):
    assert most_factors(lambda factors: factors <= most, 100) == most
