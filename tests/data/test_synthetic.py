"""The properties that the made-up ratings promise."""

import numpy as np
import pytest

from gpu_als.data.synthetic import planted_ratings
from gpu_als.errors import InputError


@pytest.mark.parametrize(
    ("n_users", "n_items", "nnz"), [(300, 200, 3000), (30, 20, 600), (30, 20, 300), (1, 1, 1)]
)
def test_planted_pairs_are_different_and_inside(n_users, n_items, nnz):
    planted = planted_ratings(n_users, n_items, nnz, random_state=11)
    assert planted.rows.dtype == planted.cols.dtype == np.int64
    assert planted.values.dtype == np.float32
    assert len(planted.values) == nnz
    assert len(set(zip(planted.rows.tolist(), planted.cols.tolist(), strict=True))) == nnz
    assert 0 <= planted.rows.min() <= planted.rows.max() < n_users
    assert 0 <= planted.cols.min() <= planted.cols.max() < n_items


def test_planted_ratings_repeat_for_a_seed():
    first, again, other = (planted_ratings(50, 40, 500, random_state=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


def test_planted_noise_is_all_that_its_own_model_leaves():
    # A full matrix minus its best approximation of rank 8 + 2 (two biases) is the noise.
    n_users, n_items, rank = 400, 300, 8
    planted = planted_ratings(
        n_users, n_items, n_users * n_items, rank=rank, noise=0.5, random_state=17
    )
    full = np.zeros((n_users, n_items))
    full[planted.rows, planted.cols] = planted.values
    singular = np.linalg.svd(full, compute_uv=False)
    n_planted = rank + 2
    # What is left lies in (n_users - n_planted) x (n_items - n_planted) dimensions.
    left = np.sqrt(
        np.sum(singular[n_planted:] ** 2) / (n_users - n_planted) / (n_items - n_planted)
    )
    assert left == pytest.approx(0.5, rel=0.02)
    assert singular[rank - 1] > 2 * singular[n_planted]
    assert planted.noise == 0.5


def test_planted_mean_and_noiseless_rank():
    planted = planted_ratings(60, 50, 3000, rank=2, noise=0.0, mean=100.0, random_state=4)
    full = np.zeros((60, 50))
    full[planted.rows, planted.cols] = planted.values
    singular = np.linalg.svd(full, compute_uv=False)
    assert singular[4] < 1e-6 * singular[0]  # rank 2, two biases, and float32 rounding
    assert singular[2] > 1
    assert full.mean() == pytest.approx(100.0, abs=1.0)


def test_planted_pairs_are_skewed_and_in_random_order():
    planted = planted_ratings(2000, 1000, 50_000, random_state=29)
    for ids in (planted.rows, planted.cols):
        degrees = np.sort(np.bincount(ids))
        assert degrees[-1] > 8 * np.median(degrees)
    halves = planted.rows[:25_000], planted.rows[25_000:]
    spread = planted.rows.std() * np.sqrt(2 / 25_000)
    assert abs(halves[0].mean() - halves[1].mean()) < 5 * spread


@pytest.mark.parametrize("nnz", [0, -1, 13])
def test_planted_size_is_checked(nnz):
    with pytest.raises(InputError, match=f"nnz: found {nnz}; pass 1 to .* = 12 ratings"):
        planted_ratings(3, 4, nnz)
