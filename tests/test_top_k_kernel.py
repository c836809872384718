"""The kernels of the best items, run on the CPU, against a full sort in float64.

Factors are whole numbers, so that every product is exact and equal scores are many.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import numpy as np
import ptx
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_als.backends.cupy import top_k as module
from gpu_als.backends.cupy.launch import DeviceLimits
from gpu_als.backends.cupy.nvrtc import source_of
from gpu_als.backends.cupy.top_k import (
    MOST_BEST,
    TopKPlan,
    bits_of,
    padded,
    plan_top_k,
    run_top_k,
    users_per_call,
)
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.ranking.top_k import top_k

KERNEL = Path(module.__file__).parent / "kernels" / "top_k.cu"
on_cpu = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))

LOWEST = float(np.finfo(np.float32).min)
WARPS = [(8, 1), (1, 2)]
ALL_WARPS = pytest.mark.parametrize("warps", WARPS, ids=["8x1", "1x2"])
N_BEST = [1, 32, 33, 1000]
KB = 1 << 10
LIMITS = {
    "T4": DeviceLimits(75, 64 * KB, 64 * KB),
    "A100": DeviceLimits(80, 163 * KB, 164 * KB),
    "RTX 3090": DeviceLimits(86, 99 * KB, 100 * KB),
    "RTX 4090": DeviceLimits(89, 99 * KB, 100 * KB),
    "H100": DeviceLimits(90, 227 * KB, 228 * KB),
    "B200": DeviceLimits(100, 227 * KB, 228 * KB),
    "RTX 5090": DeviceLimits(120, 99 * KB, 100 * KB),
}


@functools.cache
def compiled(function, user_warps, item_warps):
    macros = {"USER_WARPS": user_warps, "ITEM_WARPS": item_warps, "BLOCKS": 1}
    return ptx.load(source_of("top_k"), function, macros)


def get_kernel(file, function, macros):
    """Return a kernel; of what does not depend on the shape of blocks, one for all of them."""
    assert file == "top_k"
    macros = dict(macros)
    assert macros.pop("BLOCKS") >= 1
    if function == "top_k_merge":
        macros = {"USER_WARPS": 8, "ITEM_WARPS": 1}
    return compiled(function, macros["USER_WARPS"], macros["ITEM_WARPS"])


def make_plan(n_users, n_items, n_factors, n_best, warps, items_per_split=None):
    """Return a plan for blocks of the given shape; without a number of items, one split."""
    per_block = 128 * warps[1]
    wanted = n_items if items_per_split is None else items_per_split
    items_per_split = -(-wanted // per_block) * per_block
    lists = -(-n_items // items_per_split) * warps[1]
    merges = module._merges(lists)
    return TopKPlan(n_users, n_items, n_factors, n_best, *warps, 1, items_per_split, merges)


def whole_numbers(n_users, n_items, k, seed=0, largest=3):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(-largest, largest + 1, (n, k)).astype(np.float32) for n in (n_users, n_items)
    ]


def csr_of(likes):
    """Return the rows of a boolean matrix as the kernels take them, not beginning at 0."""
    indptr = 5 + np.concatenate([[0], np.cumsum(likes.sum(axis=1))])
    return indptr.astype(np.int64), np.append(np.full(5, -7), np.nonzero(likes)[1]).astype(np.int32)


def full_sort(scores, n_best, likes=None, nobody=None):
    """Sort everything: not filtered first, then largest first, then by id."""
    hidden = np.zeros(scores.shape, bool)
    if likes is not None:
        hidden |= likes
    if nobody is not None:
        hidden[:, nobody] = True
    scores = np.where(hidden, LOWEST, scores)
    ids = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores, hidden))
    ids = ids[:, :n_best]
    return ids, np.take_along_axis(scores, ids, axis=1)


def run(users, items, plan, likes=None, nobody=None):
    return run_top_k(
        np,
        get_kernel,
        plan,
        padded(np, users),
        padded(np, items),
        excluded=None if likes is None else csr_of(likes),
        excluded_everywhere=None if nobody is None else bits_of(nobody, len(items)),
    )


def check(users, items, plan, likes=None, nobody=None):
    ids, scores = run(users, items, plan, likes, nobody)
    exact = users.astype(np.float64) @ items.astype(np.float64).T
    expected_ids, expected = full_sort(exact, plan.n_best, likes, nobody)
    assert ids.dtype == np.int32
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected)
    assert not np.signbit(scores[scores == 0]).any()


# Results


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("n_best", N_BEST)
def test_ties_go_to_the_lowest_id(n_best, warps):
    users, items = whole_numbers(19, 1300, 3)
    check(users, items, make_plan(19, 1300, 3, n_best, warps))
    check(users, items, make_plan(19, 1300, 3, n_best, warps, 300))


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("n_best", N_BEST)
def test_everything_is_wanted(n_best, warps):
    users, items = whole_numbers(3, n_best, 2)
    check(users, items, make_plan(3, n_best, 2, n_best, warps))


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("n_items", [1, 31, 127, 128, 129, 257, 513])
def test_ends_of_tiles(n_items, warps):
    for n_users in (1, 16, 17, 65, 129)[: 3 if n_items > 129 else 5]:
        users, items = whole_numbers(n_users, n_items, 2, n_items)
        for items_per_split in (n_items, 128):
            plan = make_plan(n_users, n_items, 2, min(5, n_items), warps, items_per_split)
            check(users, items, plan)


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("k", [1, 3, 4, 5, 15, 16, 17, 33, 64])
def test_any_number_of_factors(k, warps):
    users, items = whole_numbers(7, 300, k, k)
    check(users, items, make_plan(7, 300, k, 9, warps))


@on_cpu
@pytest.mark.parametrize("n_best", [1, 10, 100, 300])
def test_one_user_and_many_lists(n_best):
    """Two rounds of merging."""
    users, items = whole_numbers(1, 9000, 4)
    plan = make_plan(1, 9000, 4, n_best, (1, 2), 256)
    assert plan.lists == 72
    assert [plan.groups(*merge) for merge in plan.merges] == [3, 1]
    check(users, items, plan)


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("n_best", [1, 10, 100])
@pytest.mark.parametrize("step", [1, -1])
def test_scores_in_order(step, n_best, warps):
    """Rising scores: every item is among the best when it comes. Falling: only the first are."""
    items = np.arange(1500, dtype=np.float32)[::step, None].copy()
    users = np.array([[1], [2], [0], [-1]], np.float32)
    check(users, items, make_plan(4, 1500, 1, n_best, warps))


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("n_items", [40, 700])
def test_filtered_items_come_last(n_items, warps):
    users, items = whole_numbers(21, n_items, 3)
    rng = np.random.default_rng(1)
    likes = rng.random((21, n_items)) < 0.4
    likes[0] = True
    likes[1] = False
    likes[2] = np.arange(n_items) != n_items - 1
    likes[3] = np.arange(n_items) == n_items - 1
    nobody = rng.choice(n_items, n_items // 3, replace=False)
    filters = [
        {"likes": likes},
        {"nobody": nobody},
        {"likes": likes, "nobody": nobody},
        {"nobody": np.arange(n_items)},
        {"nobody": np.zeros(0, np.int64)},
        {"likes": likes, "nobody": np.arange(n_items - 1)},
    ]
    for kinds, n_best in itertools.product(filters, (1, 33, n_items)):
        check(users, items, make_plan(21, n_items, 3, n_best, warps, 256), **kinds)


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("n_best", [1, 10, 700])
def test_the_general_path_agrees(n_best, warps):
    users, items = whole_numbers(11, 700, 5)
    rng = np.random.default_rng(6)
    likes = rng.random((11, 700)) < 0.5
    nobody = rng.choice(700, 100)
    found = run(users, items, make_plan(11, 700, 5, n_best, warps, 256), likes, nobody)
    general = top_k(
        NumpyBackend(1), users, items, n_best, liked=sp.csr_matrix(likes), filter_items=nobody
    )
    for array, expected in zip(found, general, strict=True):
        np.testing.assert_array_equal(array, expected)


@on_cpu
def test_excluded_best_items_do_not_hide_others():
    users, items = np.ones((1, 1), np.float32), np.arange(900, dtype=np.float32)[:, None]
    likes = np.arange(900)[None] >= 100
    plan = make_plan(1, 900, 1, 100, (1, 2))
    ids, _ = run(users, items, plan, likes)
    np.testing.assert_array_equal(ids[0], np.arange(100)[::-1])


@on_cpu
@ALL_WARPS
def test_zeros_of_both_signs_are_equal(warps):
    items = np.array([-0.0, 0.0, 1.0, -0.0, 0.0, -1.0], np.float32)[:, None]
    users = np.array([[1.0], [-1.0], [-0.0]], np.float32)
    check(users, items, make_plan(3, 6, 1, 6, warps))
    # Sums begin at 0, and adding 0 gives 0: only what is too small for a float becomes -0.
    tiny = np.full((1, 4), 1e-30, np.float32)
    ids, scores = run(tiny * users, tiny * items, make_plan(3, 6, 4, 6, warps))
    np.testing.assert_array_equal(ids, np.tile(np.arange(6), (3, 1)))
    np.testing.assert_array_equal(np.signbit(scores), False)


@on_cpu
@ALL_WARPS
@pytest.mark.parametrize("filler", [0, 200])
def test_scores_that_are_no_finite_numbers(filler, warps):
    """NaN, -inf and the lowest number are equal; filtered items still come after them."""
    largest = float(np.finfo(np.float32).max)
    rows = np.zeros((8 + filler, 4), np.float32)
    rows[1] = [-largest, 0, 0, 0]  # -inf
    rows[2] = [0, 0, np.inf, 0]  # 0 inf
    rows[3] = [-largest / 2, 0, 0, 0]  # the lowest
    rows[4] = [largest, 0, 0, 0]  # inf
    rows[5] = [1, 0, 0, 0]
    rows[6] = [largest, 0, 0, 0]
    rows[7] = [5, 0, 0, 0]
    users = np.array([[2, 2, 0, 0]], np.float32)
    likes = np.zeros((1, 8 + filler), bool)
    likes[0, [0, 7]] = True
    fill = list(range(8, 8 + filler))
    ids, scores = run(users, rows, make_plan(1, len(rows), 4, len(rows), warps), likes)
    np.testing.assert_array_equal(ids[0], [4, 6, 5, *fill, 1, 2, 3, 0, 7])
    expected = [np.inf, np.inf, 2, *[0] * filler, *[LOWEST] * 5]
    np.testing.assert_array_equal(scores[0], np.array(expected, np.float32))
    ids, _ = run(users, rows, make_plan(1, len(rows), 4, 3, warps), likes)
    np.testing.assert_array_equal(ids[0], [4, 6, 5])


@on_cpu
@ALL_WARPS
def test_real_numbers(warps):
    """Full precision, and the same bits however the work is cut."""
    rng = np.random.default_rng(2)
    users = rng.standard_normal((20, 50)).astype(np.float32)
    items = rng.standard_normal((900, 50)).astype(np.float32)
    ids, scores = run(users, items, make_plan(20, 900, 50, 15, warps))
    exact = users.astype(np.float64) @ items.astype(np.float64).T
    expected_ids, expected = full_sort(exact, 15)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    other = run(users, items, make_plan(20, 900, 50, 15, WARPS[warps == WARPS[0]], 128))
    np.testing.assert_array_equal(ids, other[0])
    assert scores.tobytes() == other[1].tobytes()


@on_cpu
@ALL_WARPS
def test_the_order_of_events_does_not_show(warps):
    rng = np.random.default_rng(3)
    users, items = whole_numbers(20, 900, 3)
    likes = rng.random((20, 900)) < 0.2
    plan = make_plan(20, 900, 3, 40, warps, 300)
    kernels = [get_kernel("top_k", name, plan.macros) for name in ("top_k_scan", "top_k_merge")]
    seen = set()
    for order in ("forward", "forward", "reverse", "shuffle:1", "shuffle:2"):
        before = [kernel.order for kernel in kernels]
        for kernel in kernels:
            kernel.order = order
        try:
            seen.add(b"".join(array.tobytes() for array in run(users, items, plan, likes)))
        finally:
            for kernel, old in zip(kernels, before, strict=True):
                kernel.order = old
    assert len(seen) == 1


@on_cpu
@settings(max_examples=40)
@given(
    n_users=st.integers(1, 40),
    n_items=st.integers(1, 600),
    n_best=st.integers(1, 600),
    items_per_split=st.integers(1, 600),
    warps=st.sampled_from(WARPS),
    seed=st.integers(0, 2**32),
)
def test_any_shape(n_users, n_items, n_best, items_per_split, warps, seed):
    rng = np.random.default_rng(seed)
    users, items = whole_numbers(n_users, n_items, 1, seed, largest=5)
    likes = rng.random((n_users, n_items)) < rng.random()
    nobody = np.nonzero(rng.random(n_items) < 0.3 * rng.random())[0]
    plan = make_plan(n_users, n_items, 1, min(n_best, n_items), warps, items_per_split)
    check(users, items, plan, likes, nobody)


@on_cpu
def test_a_part_of_the_users():
    """Rows of a longer array, as they come when users are streamed."""
    users, items = whole_numbers(90, 500, 8)
    likes = np.random.default_rng(4).random((90, 500)) < 0.3
    indptr, indices = csr_of(likes)
    plan = make_plan(30, 500, 8, 20, (8, 1))
    ids, _ = run_top_k(np, get_kernel, plan, users[30:60], items, excluded=(indptr[30:61], indices))
    expected, _ = full_sort(users[30:60].astype(float) @ items.T, 20, likes[30:60])
    np.testing.assert_array_equal(ids, expected)


def test_no_users():
    plan = plan_top_k(0, 10, 4, 3, LIMITS["H100"])
    ids, scores = run_top_k(np, None, plan, np.zeros((0, 4), np.float32), np.ones((10, 4), "f4"))
    assert ids.shape == scores.shape == (0, 3)


def test_wrong_arrays_are_refused():
    plan = plan_top_k(2, 10, 4, 3, LIMITS["H100"])
    good = np.zeros((2, 4), np.float32), np.zeros((10, 4), np.float32)
    for users, items in (
        (good[0][:1], good[1]),
        (good[0], good[1][:9]),
        (good[0].astype(np.float64), good[1]),
        (good[0], np.asfortranarray(np.zeros((10, 4), np.float32))),
    ):
        with pytest.raises(ValueError):
            run_top_k(np, get_kernel, plan, users, items)


# Addresses and ids beyond 32 bits

FAR = """
extern "C" __global__ void far(const float* users, const float* items, Key* lists,
                               const int64* indptr, const int* indices, unsigned first_user,
                               unsigned n_users, unsigned first_item, unsigned end) {
    SHARED_MEMORY(shared);
    const Scan scan = {users, items, lists, {indptr, indices, nullptr}, n_users, 4, 8, 1};
    scan_items(scan, shared, first_user, first_item, end, 0);
}
"""


@on_cpu
def test_the_last_of_two_billion():
    """The rows of arrays that would not fit here: only the last ones are there."""
    n_users, n_items = 3, 500
    last = 2**31 - 1
    first_user, first_item = last - n_users, last - n_items
    users, items = whole_numbers(n_users, n_items, 4)
    indptr, indices = csr_of(np.random.default_rng(5).random((n_users, n_items)) < 0.5)
    likes = np.zeros((n_users, n_items), bool)
    for u in range(n_users):
        likes[u, indices[indptr[u] : indptr[u + 1]]] = True
    lists = np.zeros((n_users, 8), np.uint64)

    def from_row(array, row):
        return np.uint64(array.ctypes.data - row * array[0].nbytes)

    kernel = ptx.load(
        source_of("top_k") + FAR, "far", {"USER_WARPS": 4, "ITEM_WARPS": 1, "BLOCKS": 1}
    )
    kernel.arrays = {"users": users, "items": items, "lists": lists, "indptr": indptr}
    plan = make_plan(n_users, n_items, 4, 8, (4, 1))
    kernel.launch(
        (1,),
        (plan.threads,),
        (
            from_row(users, first_user), from_row(items, first_item), from_row(lists, first_user),
            from_row(indptr, first_user), indices + np.int32(first_item),
            np.uint32(first_user), np.uint32(last), np.uint32(first_item), np.uint32(last),
        ),
        plan.shared_bytes,
    )  # fmt: skip
    expected, _ = full_sort(users.astype(float) @ items.T, 8, likes)
    found = ~(lists & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    np.testing.assert_array_equal(found.astype(np.int64) - first_item, expected)


# Traffic


@on_cpu
def test_items_are_read_once_for_a_tile_of_users():
    warps = 8, 1
    n_users = 16 * warps[0] + 1
    users, items = whole_numbers(n_users, 300, 20)
    plan = make_plan(n_users, 300, 20, 10, warps, 256)
    scan = get_kernel("top_k", "top_k_scan", plan.macros)
    run(users, items, plan)
    assert scan.counts.reads["argument 1"].bytes == plan.grid[0] * items.nbytes
    # Of shared memory, only the merges meet conflicts: where they look depends on the scores. And
    # what NVRTC 13.5 splits into scalars: a warp's lanes are four words apart in each.
    lines = KERNEL.read_text("utf-8").splitlines()
    for site in scan.counts.conflicting():
        name, _, number = site.where.partition(":")
        assert name == KERNEL.name
        line = lines[int(number) - 1]
        assert re.search(r"(keys|pending)\[", line) or (site.width == 4 and "store4" in line)


# Plans


def test_the_plan_knows_the_kernel():
    source = KERNEL.read_text("utf-8")

    def constant(name):
        return int(re.search(rf"constexpr int {name} = (\d+);", source)[1])

    assert constant("USERS") == module._USERS
    assert 32 * constant("ITEMS") == module._ITEMS
    assert "ROW = COLUMNS + 4;" in source
    assert constant("COLUMNS") + 4 == module._ROW
    assert constant("PENDING") == module._PENDING


@pytest.mark.parametrize("device", LIMITS)
def test_plans_fit_every_device(device):
    limits = LIMITS[device]
    for n_users, n_items, n_best in itertools.product(
        (1, 16, 17, 64, 65, 1000, 50_000, 3_000_000), (1, 100, 27_000, 2**31 - 1), (1, 10, 1000)
    ):
        if n_best > n_items:
            continue
        plan = plan_top_k(n_users, n_items, 128, n_best, limits)
        assert plan.shared_bytes <= limits.shared_per_block
        each = plan.shared_bytes + 1024
        assert plan.blocks * each <= limits.shared_per_multiprocessor or plan.blocks == 1
        assert plan.grid[0] * plan.users_per_block >= n_users
        assert plan.grid[1] * plan.items_per_split >= n_items
        assert plan.grid[1] <= 65535
        assert plan.groups(*plan.merges[-1]) == 1
        if n_users <= users_per_call(n_best):
            assert plan.workspace_bytes <= 1 << 29
        assert len(str(plan).splitlines()) == 2 + len(plan.merges)


@pytest.mark.parametrize("n_best", [10, 1000])
@pytest.mark.parametrize("n_users", [1, 16, 100, 1000, 5000])
def test_few_users_use_the_whole_device(n_users, n_best):
    plan = plan_top_k(n_users, 1_000_000, 128, n_best, LIMITS["H100"], multiprocessors=132)
    tiles, splits = plan.grid
    slots = 132 * plan.blocks
    waves = -(-tiles * splits // slots)
    time = waves * plan.items_per_split * slots
    assert time <= 1.15 * tiles * 1_000_000


def test_many_users_share_the_items():
    plan = plan_top_k(1_000_000, 100_000, 128, 10, LIMITS["H100"])
    assert (plan.users_per_block, plan.splits, plan.blocks) == (128, 1, 2)
    assert plan_top_k(1_000_000, 100_000, 128, 10, LIMITS["T4"]).users_per_block == 64
    assert str(plan).splitlines()[1:] == [
        "top_k_scan   7813 x 1 blocks of 256 threads, 84.0 KB each; 128 users and 100096 items "
        "each  [USER_WARPS=8 ITEM_WARPS=1 BLOCKS=2]",
        "top_k_merge  1000000 x 1 blocks of 32 threads, 0.1 KB each; 1 lists each, 1 apart",
    ]


@pytest.mark.parametrize(
    ("n_users", "n_items", "n_best"),
    [(1, 10, 11), (1, 10, 0), (1, 2**31, 5), (2**31, 10, 5), (1, 10_000, MOST_BEST + 1)],
)
def test_no_plan(n_users, n_items, n_best):
    with pytest.raises(ValueError):
        plan_top_k(n_users, n_items, 8, n_best, LIMITS["H100"])


@pytest.mark.parametrize("lists", [1, 2, 31, 32, 33, 100, 1024, 1025, 2000, 40_000])
def test_merges_end_in_one_list(lists):
    left, spacing = lists, 1
    for fan, apart in module._merges(lists):
        assert apart == spacing
        left, spacing = -(-left // fan), spacing * fan
    assert left == 1
    assert len(module._merges(lists)) <= 3


def test_users_come_in_bounded_memory():
    for n_best in (1, 10, 1000, MOST_BEST):
        assert users_per_call(n_best) % 128 == 0
        assert users_per_call(n_best) * n_best * 8 <= 1 << 28


def test_padding_and_bits():
    rows = np.arange(10, dtype=np.float32).reshape(2, 5)
    out = padded(np, rows)
    np.testing.assert_array_equal(out, np.pad(rows, ((0, 0), (0, 3))))
    assert padded(np, out) is out
    assert padded(np, np.asfortranarray(out)).flags.c_contiguous
    bits = bits_of(np.array([0, 31, 33, 33]), 70)
    np.testing.assert_array_equal(bits, np.array([0x80000001, 2, 0], np.uint32))
