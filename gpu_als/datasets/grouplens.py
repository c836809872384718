"""The MovieLens ratings that GroupLens publishes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from gpu_als.data.interactions import Interactions
from gpu_als.data.text_table import read_table
from gpu_als.datasets.archives import ArchiveMember
from gpu_als.datasets.cache import PublishedFile, fetch
from gpu_als.errors import InputError

__all__ = ["movielens"]


@dataclass(frozen=True)
class _Release:
    file: PublishedFile
    member: str
    largest: int  # bytes, about twice what the member has


def _release(name: str, size: int, md5: str, member: str, largest: int) -> _Release:
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return _Release(PublishedFile(url, size, md5), member, largest)


# GroupLens publishes each MD5 beside the archive, under its address with ".md5" appended.
_RELEASES = {
    "100k": _release(
        "ml-100k",
        4_924_029,
        "0e33842e24a9c977be4e0107933c0723",
        "ml-100k/u.data",
        4_000_000,
    ),
    "1m": _release(
        "ml-1m",
        5_917_549,
        "c4d9eecfca2ab87c1945afe126590906",
        "ml-1m/ratings.dat",
        50_000_000,
    ),
    "10m": _release(
        "ml-10m",
        65_566_137,
        "ce571fd55effeba0271552578f2648bd",
        "ml-10M100K/ratings.dat",
        500_000_000,
    ),
    "20m": _release(
        "ml-20m",
        198_702_078,
        "cd245b17a1ae2cc31bb14903e1204af3",
        "ml-20m/ratings.csv",
        1_000_000_000,
    ),
    "25m": _release(
        "ml-25m",
        261_978_986,
        "6b51fb2759a8657d3bfcbfc42b592ada",
        "ml-25m/ratings.csv",
        1_400_000_000,
    ),
}


def movielens(
    release: Literal["100k", "1m", "10m", "20m", "25m"],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    url: str | None = None,
) -> Interactions:
    """Return the ratings of a MovieLens release, downloading it if it is not in the cache folder.

    Parameters
    ----------
    release : {"100k", "1m", "10m", "20m", "25m"}
        About as many ratings as that.
    cache_dir : path or None
        Folder the archive is kept in. None: the environment variable ``GPU_ALS_CACHE``, or else
        ``gpu_als`` in ``XDG_CACHE_HOME``, which is ``~/.cache`` if unset.
    show_progress : bool
        Whether a download shows a progress bar.
    url : str or None
        Another address to download the same archive from. None: GroupLens.

    Returns
    -------
    Interactions
        float32 stars, 1 to 5 or, from "10m" on, 0.5 to 5 in steps of 0.5. Users and movies have
        the integer ids of GroupLens. Times are left out.

    Raises
    ------
    InputError
        If there is no such release.
    DownloadError
        If the archive cannot be downloaded. What was received is kept, and the next call
        continues from there.
    ReadError
        If the archive in the cache folder is not the published one.

    Notes
    -----
    GroupLens allows research use, not redistribution, and asks to cite F. M. Harper and
    J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. The README in
    each archive has the terms.
    """
    if not isinstance(release, str) or release not in _RELEASES:
        raise InputError(
            f"release: found {release!r}; pass one of {', '.join(map(repr, _RELEASES))}"
        )
    found = _RELEASES[release]
    archive = fetch(found.file, url=url, cache_dir=cache_dir, show_progress=show_progress)
    member = ArchiveMember(archive, found.member, found.largest)
    # The three formats are among those that the reader recognises.
    triples = read_table(
        cast(Path, member),
        member.suffix,
        user=None,
        item=None,
        rating=None,
        delimiter=None,
        header="auto",
    )
    return Interactions.from_triples(*triples, duplicates="last")
