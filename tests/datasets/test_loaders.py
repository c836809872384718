"""Each dataset is read from an archive laid out as its publisher lays it out."""

import dataclasses
import io
import re
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_als import Interactions, datasets
from gpu_als.datasets import archives, grouplens, lastfm_360k
from gpu_als.errors import InputError, ReadError

RNG = np.random.default_rng(12)
PAIRS = sorted({(int(u), int(m)) for u, m in RNG.integers(1, [60, 900], (500, 2))})
STARS = (RNG.integers(2, 11, len(PAIRS)) / 2).tolist()
RATINGS = dict(zip(PAIRS, STARS, strict=True))


def lines(delimiter, end="\n", whole=False):
    """Return one line of user, movie, stars and time for each rating."""
    rows = [
        (user, movie, int(stars) if whole else stars, 978300760)
        for (user, movie), stars in RATINGS.items()
    ]
    return "".join(delimiter.join(map(str, row)) + end for row in rows)


HEADER = "userId,movieId,rating,timestamp"
# Folder, name and text of the member each release has its ratings in, and whether stars are whole.
LAYOUTS = {
    "100k": ("ml-100k", "u.data", lines("\t", whole=True), True),
    "1m": ("ml-1m", "ratings.dat", lines("::", whole=True), True),
    "10m": ("ml-10M100K", "ratings.dat", lines("::"), False),
    "20m": ("ml-20m", "ratings.csv", HEADER + "\n" + lines(","), False),
    "25m": ("ml-25m", "ratings.csv", HEADER + "\r\n" + lines(",", end="\r\n"), False),
}


def zip_of(folder, name, text):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(folder)
        archive.writestr(f"{folder}/README", "Ratings, and how they may be used")
        archive.writestr(f"{folder}/movies.dat", "1::Misérables::Drama\n".encode("latin-1"))
        archive.writestr(f"{folder}/{name}", text)
    return out.getvalue()


@pytest.fixture
def publish(serve, monkeypatch):
    """Return a function that publishes a small archive in place of a release of MovieLens."""

    def publish_release(release, content):
        server = serve(content)
        record = dataclasses.replace(
            grouplens._RELEASES[release], file=server.published(f"ml-{release}.zip")
        )
        monkeypatch.setitem(grouplens._RELEASES, release, record)
        return server

    return publish_release


def as_dict(interactions):
    """Return value by user and item id."""
    entries = interactions.user_items.tocoo()
    users = interactions.user_ids[entries.row].tolist()
    items = interactions.item_ids[entries.col].tolist()
    return dict(zip(zip(users, items, strict=True), entries.data.tolist(), strict=True))


@pytest.mark.parametrize("release", LAYOUTS)
def test_every_release_of_movielens_is_read(publish, tmp_path, release):
    folder, name, text, whole = LAYOUTS[release]
    server = publish(release, zip_of(folder, name, text))
    found = datasets.movielens(release, cache_dir=tmp_path, show_progress=False)
    assert isinstance(found, Interactions)
    assert as_dict(found) == {pair: int(s) if whole else s for pair, s in RATINGS.items()}
    assert found.user_ids.dtype == found.item_ids.dtype == np.int64
    assert found.user_items.dtype == np.float32
    assert datasets.movielens(release, cache_dir=tmp_path, show_progress=False).nnz == found.nnz
    assert len(server.requests) == 1


def test_a_rating_that_was_revised_counts_once(publish, tmp_path):
    publish("1m", zip_of("ml-1m", "ratings.dat", "1::2::3::978300760\n1::2::5::978300761\n"))
    found = datasets.movielens("1m", cache_dir=tmp_path, show_progress=False)
    assert as_dict(found) == {(1, 2): 5.0}


def test_another_release_is_named_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match="release: found '32m'; pass one of '100k', '1m', '10m'"):
        datasets.movielens("32m", cache_dir=tmp_path)


def test_an_archive_that_is_not_laid_out_so_is_refused(publish, tmp_path):
    publish("100k", zip_of("ml-100k", "u1.base", lines("\t", whole=True)))
    with pytest.raises(ReadError, match=r"ml-100k\.zip/ml-100k/u\.data: the archive has 0 files"):
        datasets.movielens("100k", cache_dir=tmp_path, show_progress=False)


def test_a_bad_line_is_named_with_its_place_in_the_archive(publish, tmp_path):
    publish("20m", zip_of("ml-20m", "ratings.csv", f"{HEADER}\n1,2,3.5,1\n1,3,many,1\n"))
    with pytest.raises(ReadError, match=r"ml-20m\.zip/ml-20m/ratings\.csv:3: the rating 'many'"):
        datasets.movielens("20m", cache_dir=tmp_path, show_progress=False)


def test_every_published_file_is_pinned():
    files = [record.file for record in grouplens._RELEASES.values()] + [lastfm_360k._FILE]
    assert len({file.md5 for file in files}) == len({file.name for file in files}) == 6
    for file in files:
        assert file.url.startswith("https://")
        assert re.fullmatch("[0-9a-f]{32}", file.md5)


ANN, BOB = "a" * 40, "0123456789abcdef" * 2 + "01234567"
MBID = "3bd73256-3905-4f3a-97e2-8b341527f805"


def tar_of(text):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        folder = tarfile.TarInfo("lastfm-dataset-360K")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in (
            ("README.txt", b"Version 1.2, March 2010"),
            ("usersha1-profile.tsv", f"{ANN}\tf\t22\tGermany\tFeb 1, 2007\n".encode()),
            ("usersha1-artmbid-artname-plays.tsv", text.encode()),
        ):
            info = tarfile.TarInfo(f"lastfm-dataset-360K/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_lastfm_is_read(serve, tmp_path, monkeypatch):
    text = (
        f"{ANN}\t{MBID}\tbetty blowtorch\t2137\n"
        f'{ANN}\t\t"weird al\t7\n'
        f"{BOB}\t{MBID}\tbetty blowtorch\t1\n"
        f"{BOB}\tf2fb0ff0-5679-42ec-a55c-15109ce6e320\tdie Ärzte\t1099\n"
    )
    server = serve(tar_of(text))
    monkeypatch.setattr(lastfm_360k, "_FILE", server.published("lastfm-dataset-360K.tar.gz"))
    found = datasets.lastfm(cache_dir=tmp_path, show_progress=False)
    assert isinstance(found, Interactions)
    assert as_dict(found) == {
        (ANN, "betty blowtorch"): 2137,
        (ANN, '"weird al'): 7,
        (BOB, "betty blowtorch"): 1,
        (BOB, "die Ärzte"): 1099,
    }
    assert found.user_ids.tolist() == [BOB, ANN]
    assert found.user_items.dtype == np.float32
    datasets.lastfm(cache_dir=tmp_path, show_progress=False)
    assert len(server.requests) == 1


@pytest.fixture
def read_lastfm(tmp_path):
    """Return a function that reads the lines of a plays file inside an archive."""

    def read(text):
        path = tmp_path / "lastfm.tar.gz"
        path.write_bytes(tar_of(text))
        member = archives.ArchiveMember(path, lastfm_360k._MEMBER, 1 << 20)
        return [part.tolist() for part in lastfm_360k._read(member)]

    return read


@pytest.mark.parametrize(
    "line",
    [
        f"sep 20, 2008\t{MBID}\tturbostaat\t12",
        f"{ANN}\t\t\t12",
        f"{ANN}\t{MBID}\tdie Ärzte\t0",
        f"{ANN}\t{MBID}\tdie Ärzte\t",
        f"{ANN}\t{MBID}\tdie Ärzte",
        f"{ANN}\t{MBID}\tdie\tÄrzte\t12",
        "",
    ],
)
def test_lines_without_a_user_an_artist_or_plays_are_left_out(read_lastfm, line):
    good = f"{BOB}\t{MBID}\tturbostaat\t12\n"
    assert read_lastfm(f"{good}{line}\n{good}") == [[BOB] * 2, ["turbostaat"] * 2, [12.0] * 2]


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([ANN, BOB]),
            st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"])),
            st.integers(1, 2**40),
        ),
        min_size=1,
    )
)
def test_any_name_is_an_artist(tmp_path_factory, rows):
    """Quotes, commas, carriage returns and every other character are part of it."""
    path = tmp_path_factory.getbasetemp() / "names.tar.gz"
    path.write_bytes(tar_of("".join(f"{u}\t{MBID}\t{name}\t{n}\n" for u, name, n in rows)))
    found = lastfm_360k._read(archives.ArchiveMember(path, lastfm_360k._MEMBER, 1 << 20))
    names = [name.strip() or MBID for _, name, _ in rows]
    assert list(zip(*found, strict=True)) == [
        (user, name, plays) for (user, _, plays), name in zip(rows, names, strict=True)
    ]
