"""Public datasets, downloaded when asked for and then read from a cache folder."""

from gpu_als.datasets.grouplens import movielens
from gpu_als.datasets.lastfm_360k import lastfm

__all__ = ["lastfm", "movielens"]
