"""The properties that benchmarks' made-up counts promise."""

import numpy as np
import pytest
from powerlaw import powerlaw_interactions


@pytest.mark.parametrize(
    ("n_users", "n_items", "nnz"),
    [(5000, 2000, 250_000), (200, 50, 2000), (60, 40, 1200), (10, 100, 5), (1, 2, 1)],
)
def test_powerlaw_matrix_is_sound(n_users, n_items, nnz):
    matrix = powerlaw_interactions(n_users, n_items, nnz, seed=13)
    assert matrix.shape == (n_users, n_items)
    assert matrix.dtype == np.float32
    matrix.check_format(full_check=True)
    matrix.has_canonical_format = False  # forget, and look
    assert (np.diff(matrix.indices)[np.diff(matrix.tocoo().row) == 0] > 0).all()
    assert 0.9 * nnz - 1 <= matrix.nnz <= nnz
    assert set(np.unique(matrix.data)) <= {1.0, 2.0, 3.0, 4.0, 5.0}


def test_powerlaw_degrees_are_log_normal():
    matrix = powerlaw_interactions(6000, 3000, 300_000, median_user=27, seed=13)
    degrees = np.diff(matrix.indptr)
    assert np.median(degrees) == pytest.approx(27, abs=1)
    # A log-normal of mean 50 and median 27 has sigma = sqrt(2 log(50 / 27)); the 84th percentile
    # is one sigma above the median.
    sigma = np.sqrt(2 * np.log(50 / 27))
    assert np.quantile(degrees, 0.8413) == pytest.approx(27 * np.exp(sigma), rel=0.1)


def test_powerlaw_popularity_follows_its_law():
    # Few entries for each user, so that a user meets hardly any item twice.
    matrix = powerlaw_interactions(40_000, 500, 80_000, median_user=1.5, seed=37)
    popularity = np.sort(np.bincount(matrix.indices, minlength=500))[::-1]
    expected = (np.arange(500) + 10.0) ** -0.9
    expected *= matrix.nnz / expected.sum()
    assert popularity[100:400].sum() == pytest.approx(expected[100:400].sum(), rel=0.05)
    assert popularity[:20].sum() == pytest.approx(expected[:20].sum(), rel=0.15)
    assert (np.argsort(np.bincount(matrix.indices, minlength=500))[::-1][:5] > 5).any()  # shuffled


def test_powerlaw_repeats_for_a_seed():
    first, again, other = (powerlaw_interactions(100, 80, 900, seed=seed) for seed in (5, 5, 6))
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0
