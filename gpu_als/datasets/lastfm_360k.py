"""The Last.fm 360K play counts that Òscar Celma published."""

from __future__ import annotations

import os
from array import array

import numpy as np

from gpu_als.data.columns import Triples
from gpu_als.data.interactions import Interactions
from gpu_als.datasets.archives import ArchiveMember
from gpu_als.datasets.cache import PublishedFile, fetch

__all__ = ["lastfm"]

# Size and MD5 as published at https://doi.org/10.5281/zenodo.6090214
_FILE = PublishedFile(
    "https://zenodo.org/records/6090214/files/lastfm-dataset-360K.tar.gz",
    569_202_935,
    "635e6ed3fc873aa4ba33aba0ebce02b1",
)
_MEMBER = "lastfm-dataset-360K/usersha1-artmbid-artname-plays.tsv"
_LARGEST = 3_200_000_000  # bytes, about twice what the member has
_SHA1_DIGITS = 40


def lastfm(
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    url: str | None = None,
) -> Interactions:
    """Return the play counts of Last.fm 360K, downloading them if they are not in the cache folder.

    Parameters
    ----------
    cache_dir, show_progress
        As in :func:`~gpu_als.datasets.movielens`.
    url : str or None
        Another address to download the same archive from. None: Zenodo.

    Returns
    -------
    Interactions
        float32 play counts of 360 thousand users (the SHA-1 they are known by) and 290 thousand
        artists (their names, or MusicBrainz ids where they have none). Counts of artists with the
        same name are added up.

    Raises
    ------
    DownloadError
        If the archive cannot be downloaded. What was received is kept, and the next call
        continues from there.
    ReadError
        If the archive in the cache folder is not the published one.

    Notes
    -----
    A few lines of the published file have a date for a user, no artist or no plays. They are left
    out.

    Last.fm allows non-commercial use. Cite Ò. Celma, "Music Recommendation and Discovery in the
    Long Tail", Springer, 2010, https://doi.org/10.5281/zenodo.6090214. The README in the archive
    has the terms.
    """
    archive = fetch(_FILE, url=url, cache_dir=cache_dir, show_progress=show_progress)
    return Interactions.from_triples(*_read(ArchiveMember(archive, _MEMBER, _LARGEST)))


def _read(member: ArchiveMember) -> Triples:
    """Read lines of user, MusicBrainz id, artist and plays.

    :func:`~gpu_als.data.text_table.read_table` would stop at the lines left out here, and ends
    lines at carriage returns, which some artists have in their names.
    """
    users: list[str] = []
    artists: list[str] = []
    plays = array("d")
    seen: dict[str, str] = {}  # so that equal ids are one object in memory
    with member.open() as stream:
        for line in stream:
            try:
                user, musicbrainz_id, name, count = line.decode().split("\t")
                n_plays = int(count)
            except ValueError:
                continue
            artist = name.strip() or musicbrainz_id.strip()
            if len(user) == _SHA1_DIGITS and artist and n_plays > 0:
                users.append(seen.setdefault(user, user))
                artists.append(seen.setdefault(artist, artist))
                plays.append(n_plays)
    return Triples(np.array(users, object), np.array(artists, object), np.array(plays))
