"""Held-out RMSE on MovieLens ml-latest-small, beside the figures of an independent package.

The 2016-10 release (671 users, 9,066 rated movies, 100,004 ratings; F. Maxwell Harper and Joseph
A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5, 2015). Ratings are sorted by
(user, item) and permuted by ``numpy.random.default_rng(seed)``; the first 80 % train; test pairs
are those whose user and item occur in the training set. Reference: cmfrec 3.5.1, float64 Cholesky,
ridge lambda * n_u, 15 iterations, mean over seeds 0-4.

    python benchmarks/real_ratings.py path/to/ml-latest-small/ratings.csv
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np

import gpu_als
from gpu_als.data.readers import read_triples

# factors, bias, reference RMSE
ROWS = [(10, True, 0.8862), (50, True, 0.8659), (10, False, 0.9088), (50, False, 0.8939)]
REGULARIZATION = 0.1


def split(path: Path, seed: int) -> tuple[gpu_als.Interactions, tuple[np.ndarray, ...]]:
    """Return the training interactions and the test triples of one seed, as described above."""
    users, items, ratings = read_triples(path)
    order = np.lexsort((items, users))
    users, items, ratings = users[order], items[order], ratings[order]
    shuffled = np.random.default_rng(seed).permutation(len(ratings))
    cut = int(0.8 * len(ratings))
    train, test = shuffled[:cut], shuffled[cut:]
    known = gpu_als.Interactions.from_triples(users[train], items[train], ratings[train])
    return known, known.encode(users[test], items[test], ratings[test], unknown="skip")


def held_out_rmse(path: Path, seed: int, factors: int, bias: bool) -> float:
    """Train on one split and return the RMSE on its test pairs."""
    train, (users, items, ratings) = split(path, seed)
    model = gpu_als.ExplicitALS(
        factors,
        REGULARIZATION,
        bias=bias,
        iterations=15,
        dtype=np.float64,
        backend="numpy",
        random_state=seed,
    )
    if not bias:  # the reference centres the ratings in both cases
        mean = train.user_items.data.mean(dtype=np.float64)
        centred = train.user_items.astype(np.float64)
        centred.data -= mean
        return gpu_als.metrics.rmse(ratings, mean + model.fit(centred).predict(users, items))
    return gpu_als.metrics.rmse(ratings, model.fit(train).without_ids().predict(users, items))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ratings", type=Path, help="ratings.csv of ml-latest-small")
    path = parser.parse_args().ratings
    print(f"gpu_als {gpu_als.__version__}, NumPy {np.__version__}, {platform.machine()}")
    print("factors  biases  RMSE mean +- std over seeds 0-4   reference  difference")
    for factors, bias, reference in ROWS:
        scores = [held_out_rmse(path, seed, factors, bias) for seed in range(5)]
        mean = np.mean(scores)
        print(
            f"{factors:7}  {'yes' if bias else 'no':6}  {mean:.4f} +- {np.std(scores):.4f}"
            f"{'':17}{reference:.4f}  {mean - reference:+.4f}"
        )


if __name__ == "__main__":
    main()
