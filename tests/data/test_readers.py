"""Every supported file gives the same ratings; every bad line is named with its number."""

import gzip
import re

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data.readers import read_interactions, read_triples
from gpu_als.errors import InputError, ReadError

USERS, ITEMS, RATINGS = [3, 1, 3, 20], [10, 10, 5, 7], [4.0, 2.5, -1.0, 0.0]
ROWS = list(zip(USERS, ITEMS, RATINGS, strict=True))


@pytest.fixture
def write(tmp_path):
    """Return a function that writes text or bytes to a file and returns its path."""

    def write_file(name, content):
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


def lines(delimiter, rows=ROWS, end="\n"):
    return "".join(delimiter.join(map(str, row)) + end for row in rows)


def as_lists(triples):
    return [None if part is None else part.tolist() for part in triples]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("extra", [(), (964982703,)])
@pytest.mark.parametrize(
    ("name", "delimiter"),
    [
        ("r.csv", ","),
        ("r.CSV", ","),
        ("r.tsv", "\t"),
        ("u.data", "\t"),
        ("r.dat", "::"),
        ("r.txt", " "),
        ("r.txt", "  \t"),
        ("r.csv.gz", ","),
        ("r.dat.gz", "::"),
    ],
)
def test_text_formats_agree(write, name, delimiter, extra, end):
    rows = [(*row, *extra) for row in ROWS]
    triples = read_triples(write(name, lines(delimiter, rows, end)))
    assert as_lists(triples) == [USERS, ITEMS, RATINGS]
    assert triples.users.dtype == triples.items.dtype == np.int64


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    "header",
    [
        "userId,movieId,rating",
        "USER_ID,Item ID,Score",
        '"user","item","count"',
        "a,b,c",
        "a,b,%",
        "a,b,c,",
    ],
)
def test_headers_are_detected(write, header, bom):
    path = write("r.csv", f"{bom}\n{header}\n\n" + lines(","))
    assert as_lists(read_triples(path)) == [USERS, ITEMS, RATINGS]


def test_names_in_the_header_decide_the_order(write):
    rows = [(99, rating, item, user) for user, item, rating in ROWS]
    path = write("r.tsv", "timestamp\trating\tasin\tuser\n" + lines("\t", rows))
    assert as_lists(read_triples(path)) == [USERS, ITEMS, RATINGS]
    by_name = read_triples(path, user="asin", item="user", rating="timestamp")
    assert as_lists(by_name) == [ITEMS, USERS, [99.0] * 4]
    by_position = read_triples(path, user=2, item=3, rating=0)
    assert as_lists(by_position) == as_lists(by_name)


def test_positions_without_a_header(write):
    rows = [(rating, item, user) for user, item, rating in ROWS]
    path = write("r.csv", lines(",", rows))
    assert as_lists(read_triples(path, user=2, item=1, rating=0)) == [USERS, ITEMS, RATINGS]


def test_two_columns_mean_ratings_of_one(write):
    path = write("r.csv", lines(",", [(user, item) for user, item, _ in ROWS]))
    assert as_lists(read_triples(path)) == [USERS, ITEMS, None]
    assert read_interactions(path).user_items.data.tolist() == [1.0] * 4
    named = write("n.csv", "left,right\n1,2\n")
    assert as_lists(read_triples(named)) == [[1], [2], None]
    texts = write("t.csv", "ann,bread\nbob,tea\n")
    assert as_lists(read_triples(texts)) == [["ann", "bob"], ["bread", "tea"], None]


def test_a_timestamp_is_not_taken_for_a_rating(write):
    path = write("r.csv", "user_id,item_id,timestamp\n1,2,964982703\n")
    assert as_lists(read_triples(path)) == [[1], [2], None]


def test_header_argument_overrides_detection(write):
    path = write("r.csv", "1,2,3\n4,5,6\n")
    assert as_lists(read_triples(path, header=True)) == [[4], [5], [6.0]]
    path = write("s.csv", "user,item,1\nann,tea,2\n")
    assert as_lists(read_triples(path, header=False))[0] == ["user", "ann"]


def test_delimiter_argument(write):
    path = write("r.csv", lines(";"))
    assert as_lists(read_triples(path, delimiter=";")) == [USERS, ITEMS, RATINGS]
    path = write("r.txt", lines("<>"))
    assert as_lists(read_triples(path, delimiter="<>")) == [USERS, ITEMS, RATINGS]


def test_strings_stay_and_integers_among_them_keep_their_text(write):
    path = write("r.csv", "1,x,1\n007,y,2\n+3, z ,3\n")
    users, items, _ = read_triples(path)
    assert users.tolist() == ["1", "007", "+3"]
    assert items.tolist() == ["x", "y", "z"]


@pytest.mark.parametrize("text", ["007", "-0", "+7", "7.0", "1_0", "٧", "9" * 19, "a", "0x1", "00"])
def test_ids_that_an_integer_would_change_are_strings(write, text):
    path = write("r.csv", f"1,2,3\n{text},2,3\n5,2,3\n")
    assert read_triples(path).users.tolist() == ["1", text, "5"]


@pytest.mark.parametrize("text", ["0", "-7", str(2**63 - 1), str(-(2**63)), "100", "-10"])
def test_canonical_integers_are_integers(write, text):
    triples = read_triples(write("r.csv", f"1,2,0.5\n{text},0,10.05\n"))
    assert triples.users.tolist() == [1, int(text)]
    assert triples.ratings.tolist() == [0.5, 10.05]


def test_quoted_fields_and_embedded_line_ends(write):
    text = 'user,item,rating,note\n1,a,4,x\n2,"b, ""c""",3,"two\nlines"\n"3","d",5,\n'
    users, items, ratings = read_triples(write("r.csv", text))
    assert users.tolist() == [1, 2, 3]
    assert items.tolist() == ["a", 'b, "c"', "d"]
    assert ratings.tolist() == [4.0, 3.0, 5.0]


@pytest.mark.parametrize("quote", ["", '"'])
def test_only_line_feeds_end_lines(write, quote):
    path = write("r.csv", f"{quote}a{quote},x\u2028y\x0bz,1\nb,w\x85,2\n")
    users, items, _ = read_triples(path)
    assert users.tolist() == ["a", "b"]
    assert items.tolist() == ["x\u2028y\x0bz", "w"]  # blanks at the ends go


def test_quotes_are_plain_characters_between_tabs(write):
    users, items, _ = read_triples(write("r.tsv", '1\t"weird al\t5\n2\tb\t3\n'))
    assert items.tolist() == ['"weird al', "b"]
    assert users.tolist() == [1, 2]


ID_TEXT = st.integers(-(10**20), 10**20).map(str) | st.from_regex(
    r"[0-9a-z.+-]{1,4}", fullmatch=True
)
RATING = st.floats(-1e30, 1e30) | st.integers(-10, 10)


@given(st.lists(st.tuples(ID_TEXT, ID_TEXT, RATING), min_size=1, max_size=20))
def test_fast_and_slow_paths_read_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("triples") / "r.csv"
    path.write_text(lines(",", rows))
    users, items, ratings = read_triples(path, header=False)
    assert list(map(str, users.tolist())) == [row[0] for row in rows]
    assert list(map(str, items.tolist())) == [row[1] for row in rows]
    assert ratings.tolist() == [float(row[2]) for row in rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n1,2,abc\n", r":2: the rating 'abc' is not a number; correct it or delete"),
        ("1,2,x\n", r":1: the rating 'x' is not a number"),
        ("u,i,r\n\n1,2,\n", r":3: the rating '' is not a number"),
        ("u,i,\nv,j,3\n", r":1: the rating '' is not a number"),
        ("u,i,NA\nv,j,3\n", r":1: the rating 'NA' is not a number"),
        ('u,i,"1,5"\nv,j,3\n', r":1: the rating '1,5' is not a number"),
        ("1,2,3\n1,2,nan\n", r":2: the rating 'nan' is not finite; correct it or delete"),
        ("a,b,3\n1,2,-inf\n", r":2: the rating '-inf' is not finite"),
        ("1,2,3\n1,2,1e999\n", r":2: the rating '1e999' is not finite"),
        ("1,2,3\n1,2\n", r":2: found 2 column\(s\) where 3 are needed; complete the line, or pass"),
        ("1,2,3\n\n  \n,2,3\n", r":4: the user id is empty; fill it in or delete the line"),
        ("1,2,3\n1, ,3\n", r":2: the item id is empty; fill it in or delete the line"),
        ("1\n2\n", r":1: found 1 column\(s\) where 2 are needed"),
        ("", r": the file is empty; it needs one line 'user,item,rating' per rating"),
        ("\n \n", r": the file is empty"),
        ("user,item,rating\n", r": found no ratings below the header; add one line per rating"),
        (b"1,2,3\n\xff\xfe,1,2\n", r":2: found bytes that are not UTF-8 text; save the file as"),
        (
            "user,when,rating\n1,2,3\n",
            r": found no item column among 'user', 'when', 'rating'; pas",
        ),
        ('1,2,3\n"' + "x" * 200_000, r":2: field larger than .*; check that every quoted field"),
    ],
)
def test_bad_files_are_refused_with_place_and_remedy(write, text, message):
    path = write("r.csv", text)
    with pytest.raises(ReadError, match=re.escape(str(path)) + message):
        read_triples(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user": "who"}, r"^user: .*no column 'who'; pass one of 'user', 'item', 'rating'"),
        ({"item": -1}, "^item: found -1; pass a column name or a position counted from 0"),
        ({"rating": 1.5}, "^rating: found 1.5; pass a column name"),
        ({"user": True}, "^user: found True; pass a column name"),
        ({"user": "user", "header": False}, r"^user: .*with header=False; pass a position"),
        ({"user": 1, "item": 1}, r"^user, item, rating: .*not distinct; pass three different"),
        ({"delimiter": ""}, "^delimiter: found ''; pass for example ','"),
        ({"delimiter": "\n"}, "^delimiter: found"),
        ({"delimiter": 5}, "^delimiter: found 5; pass for example ','"),
        ({"header": "yes"}, "^header: found 'yes'; pass True, False or 'auto'"),
        ({"duplicates": "mean"}, "^duplicates: found 'mean'; pass 'sum' or 'last'"),
    ],
)
def test_bad_arguments_are_refused(write, options, message):
    with pytest.raises(InputError, match=message):
        read_interactions(write("r.csv", "user,item,rating\n1,2,3\n"), **options)


@pytest.mark.parametrize("name", ["r.parquet", "r", "r.npz.gz", "r.gz"])
def test_unknown_suffixes_list_what_is_supported(tmp_path, name):
    with pytest.raises(ReadError, match=r"supported are \.csv.*\.npz.*Interactions\.from_frame"):
        read_triples(tmp_path / name)


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "r.npz", "r.mtx", "r.mtx.gz"])
def test_a_missing_file_is_a_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        read_triples(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"1,2,3\n", gzip.compress(b"1,2,3\n" * 99)[:-9]], ids=["plain", "cut off"]
)
def test_damaged_gzip_is_named(tmp_path, content):
    path = tmp_path / "r.csv.gz"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=r"r\.csv\.gz: damaged gzip file .*; compress it again"):
        read_triples(path)


def test_interactions_from_text(write):
    path = write("r.csv", lines(",", [*ROWS, (3, 10, 1.5)]))
    x = read_interactions(path)
    assert x.user_ids.tolist() == [1, 3, 20]
    assert x.item_ids.tolist() == [5, 7, 10]
    assert x.user_items.toarray().tolist() == [[0, 0, 2.5], [-1, 0, 5.5], [0, 0, 0]]
    assert x.nnz == 4  # the stored zero counts
    last = read_interactions(path, duplicates="last", dtype=np.float64)
    assert last.user_items[1, 2] == 1.5
    assert last.user_items.dtype == np.float64
    with pytest.raises(ReadError, match=r"big\.csv: .*too large for float32.*; rescale"):
        read_interactions(write("big.csv", "1,2,1e60\n"))


MATRIX = sp.csr_matrix(np.array([[0, 1.5, 0], [0, 0, 0], [-2, 0, 3]]))


@pytest.mark.parametrize("fmt", ["csr", "csc", "coo", "dia", "bsr"])
def test_sparse_npz_keeps_its_shape(tmp_path, fmt):
    path = tmp_path / "m.npz"
    sp.save_npz(path, MATRIX.asformat(fmt))
    x = read_interactions(path)
    assert x.user_ids is None
    assert x.nnz == 3
    np.testing.assert_array_equal(x.user_items.toarray(), MATRIX.toarray())
    users, items, ratings = read_triples(path)
    np.testing.assert_array_equal(MATRIX.toarray()[users, items], ratings)
    with pytest.raises(InputError, match=r"user, item, rating: .*holds a matrix; leave them None"):
        read_interactions(path, user="row")


@pytest.mark.parametrize(
    "names", [("user", "item", "rating"), ("users", "items", "ratings"), ("row", "col", "data")]
)
def test_npz_of_arrays(tmp_path, names):
    path = tmp_path / "r.npz"
    np.savez(path, **dict(zip(names, (USERS, ITEMS, RATINGS), strict=True)), other=np.eye(2))
    assert as_lists(read_triples(path)) == [USERS, ITEMS, RATINGS]
    swapped = read_triples(path, user=names[1], item=names[0])
    assert as_lists(swapped) == [ITEMS, USERS, RATINGS]
    assert read_interactions(path).user_ids.tolist() == [1, 3, 20]


def test_bad_npz_is_refused(tmp_path):
    path = tmp_path / "r.npz"
    np.savez(path, user=[1], rating=[1.0])
    with pytest.raises(ReadError, match=r"found no item array among 'user', 'rating'; pass item="):
        read_triples(path)
    with pytest.raises(InputError, match="user: found position 0; pass the name of an array"):
        read_triples(path, user=0)
    with pytest.raises(
        InputError, match=r"rating: .*no column 'score'; pass one of 'user', 'rating'"
    ):
        read_triples(path, item="user", rating="score")
    np.savez(path, user=np.array([{}]), item=[1])
    with pytest.raises(ReadError, match=r"r\.npz: .*pickled objects, which are never loaded"):
        read_triples(path)
    path.write_text("user,item")
    with pytest.raises(ReadError, match=r"r\.npz: .*not a \.npz file"):
        read_triples(path)
    np.savez(path, user=[1, 2], item=[1, 2], rating=[1.0, np.nan])
    with pytest.raises(ReadError, match=r"r\.npz: ratings: found 1 NaN.*; remove"):
        read_interactions(path)
    np.savez(path, format=b"csr", shape=(2, 2), data=[1.0], indices=[5], indptr=[0, 1, 1])
    with pytest.raises(ReadError, match=r"r\.npz: not a sound sparse matrix .*; write it again"):
        read_interactions(path)


@pytest.mark.parametrize("name", ["m.mtx", "m.mtx.gz"])
def test_matrix_market(tmp_path, name):
    plain = tmp_path / "plain.mtx"
    scipy.io.mmwrite(plain, MATRIX)
    path = tmp_path / name
    path.write_bytes(
        gzip.compress(plain.read_bytes()) if name.endswith("gz") else plain.read_bytes()
    )
    x = read_interactions(path)
    np.testing.assert_array_equal(x.user_items.toarray(), MATRIX.toarray())
    assert x.item_ids is None


def test_matrix_market_duplicates_and_patterns(write):
    head = "%%MatrixMarket matrix coordinate real general\n2 2 3\n"
    path = write("m.mtx", head + "1 1 4\n2 2 3\n1 1 5\n")
    assert read_interactions(path).user_items[0, 0] == 9
    assert read_interactions(path, duplicates="last").user_items[0, 0] == 5
    path = write("p.mtx", "%%MatrixMarket matrix coordinate pattern general\n2 2 1\n2 1\n")
    assert read_interactions(path).user_items.toarray().tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,2,3\n",
        "%%MatrixMarket matrix coordinate real general\n2 2 1\n3 1 1.0\n",
        "%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 1.0\n",
    ],
)
def test_bad_matrix_market_is_refused(write, text):
    with pytest.raises(ReadError, match=r"m\.mtx: not a Matrix Market file .*; write it again"):
        read_interactions(write("m.mtx", text))
