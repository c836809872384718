"""Ids become rows, rows keep their ids, and nothing unknown or missing slips through."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data.ids import IdMap, factorize, to_id_array
from gpu_als.data.interactions import Interactions
from gpu_als.errors import IdRangeError, InputError

USERS = ["bo", "al", "bo", "cy", "bo"]
ITEMS = [30, 10, 20, 20, 30]
RATINGS = [1.0, 2.0, 3.0, 4.0, 5.0]


def as_dict(interactions):
    """Return {(user id, item id): rating}."""
    coo = interactions.user_items.tocoo()
    users, items = interactions.user_ids[coo.row], interactions.item_ids[coo.col]
    return dict(zip(zip(users.tolist(), items.tolist(), strict=True), coo.data, strict=True))


def test_triples_keep_sorted_ids_and_sum_duplicates():
    x = Interactions.from_triples(USERS, ITEMS, RATINGS)
    assert x.user_ids.tolist() == ["al", "bo", "cy"]
    assert x.item_ids.tolist() == [10, 20, 30]
    assert x.shape == (3, 3)
    assert x.nnz == 4
    assert x.user_items.dtype == np.float32
    assert as_dict(x) == {("bo", 30): 6, ("al", 10): 2, ("bo", 20): 3, ("cy", 20): 4}


def test_last_duplicate_wins_when_asked():
    x = Interactions.from_triples(USERS, ITEMS, RATINGS, duplicates="last", dtype=np.float64)
    assert x.user_items.dtype == np.float64
    assert as_dict(x)["bo", 30] == 5


def test_without_ratings_entries_are_counted():
    assert as_dict(Interactions.from_triples(USERS, ITEMS))["bo", 30] == 2


@given(
    st.lists(
        st.tuples(st.integers(-(2**62), 2**62), st.text(max_size=3), st.integers(-5, 5)),
        min_size=1,
        max_size=30,
    )
)
def test_any_triples_agree_with_a_dict(triples):
    # Trailing NULs are refused.
    triples = [(user, item.replace("\0", "0"), rating) for user, item, rating in triples]
    users, items, ratings = map(list, zip(*triples, strict=True))
    total: dict = {}
    for user, item, rating in triples:
        total[user, item] = total.get((user, item), 0) + rating
    assert as_dict(Interactions.from_triples(users, items, ratings)) == total
    last = {(user, item): rating for user, item, rating in triples}
    assert as_dict(Interactions.from_triples(users, items, ratings, duplicates="last")) == last


@given(st.lists(st.integers(-40, 40) | st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_factorize_numbers_any_integers(ids):
    unique, codes = factorize(np.array(ids, np.int64))
    assert unique.tolist() == sorted(set(ids))
    assert unique[codes].tolist() == ids


@pytest.mark.parametrize(
    "ids",
    [
        [7, 5],
        np.array([7, 5], np.uint16),
        np.array([7.0, 5.0]),
        np.array([7, 5], object),
        [7, np.int32(5)],
        pd.Series([7, 5], dtype="Int64"),
        pd.Series([7, 5]),
    ],
)
def test_integer_ids_become_int64(ids):
    result = to_id_array(ids, name="users")
    assert result.dtype == np.int64
    assert result.tolist() == [7, 5]


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a"],
        np.array(["b", "a"]),
        np.array(["b", "a"], object),
        ["b", np.str_("a")],
        pd.Series(["b", "a"]),
        pd.Series(["b", "a"], dtype="category"),
    ],
)
def test_string_ids_stay_strings(ids):
    result = to_id_array(ids, name="users")
    assert result.dtype == object
    assert result.tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, None], r"found 1 missing id\(s\).*position 1; drop"),
        (["a", np.nan, None], r"found 2 missing id\(s\).*position 1; drop"),
        (np.array([np.nan, 2.0]), r"found 1 missing id\(s\).*position 0; drop"),
        (pd.Series([1, None], dtype="Int64"), "missing"),
        (pd.Series(["a", None]), "missing"),
        ([1, "a"], "pass integers or strings"),
        ([1.5, 2.0], "not a whole number; pass integers or strings"),
        ([np.inf], "not a whole number"),
        ([True, False], "pass integers or strings"),
        ([b"a"], "pass integers or strings"),
        ([2**64], "beyond int64; pass such ids as strings"),
        (np.array([2**63], np.uint64), "beyond int64; pass such ids as strings"),
        ([[1, 2]], "found 2 dimensions"),
        ([[1, 2], [3]], "no array of ids"),
        ({1, 2}, "pass integers or strings"),
        (["a", "a\0"], r"found 'a\\x00', which ends in a NUL character; leave that out"),
        (np.array(["a", "a\0"], object), "ends in a NUL"),
        ("a\0", "ends in a NUL"),
        ([np.str_("a\0"), np.str_("b")], "ends in a NUL"),
    ],
)
def test_unusable_ids_are_refused(ids, message):
    with pytest.raises(InputError, match=f"^items: .*{message}"):
        Interactions.from_triples([1, 2], ids)


def test_unusable_texts_of_any_length_are_refused():
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("NumPy 1 has no StringDType")
    for texts, options, message in (
        (["a\0", "b"], {}, "ends in a NUL"),
        (["a", None], {"na_object": None}, "missing"),
        (["a", np.nan], {"na_object": np.nan}, "missing"),
    ):
        with pytest.raises(InputError, match=f"^items: .*{message}"):
            Interactions.from_triples([1, 2], np.array(texts, np.dtypes.StringDType(**options)))


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([1, 2, 3], "found lengths users 2, items 2, ratings 3"),
        ([1, np.nan], r"found 1 NaN.*position 1; remove"),
        ([np.inf, -np.inf], r"found 2 NaN or infinite.*position 0; remove"),
        ([1, None], "found 1 NaN"),
        (["1", "2"], "convert them to real numbers"),
        ([1, 10**400], "a number beyond every float"),
        (np.array(["1", 2], object), "convert them to real numbers"),
        ([1j, 2], "convert them to real numbers"),
        ([[1, 2]], "found 2 dimensions"),
        (5.0, "found 0 dimensions"),
    ],
)
def test_unusable_ratings_are_refused(ratings, message):
    with pytest.raises(InputError, match=f"ratings: .*{message}"):
        Interactions.from_triples([1, 2], [1, 2], ratings)


def test_other_arguments_are_checked():
    with pytest.raises(InputError, match="duplicates: found 'mean'; pass 'sum' or 'last'"):
        Interactions.from_triples([1], [1], duplicates="mean")
    with pytest.raises(InputError, match="lengths users 1, items 2"):
        Interactions.from_triples([1], [1, 2])
    with pytest.raises(InputError, match="at least one user and one item"):
        Interactions.from_triples([], [])


FRAME = {"user": USERS, "item": ITEMS, "rating": RATINGS}


@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        pd.DataFrame(FRAME),
        pd.DataFrame(FRAME).to_records(),
        np.array(
            list(zip(USERS, ITEMS, RATINGS, strict=True)),
            dtype=[("user", "U4"), ("item", "i4"), ("rating", "f4")],
        ),
    ],
)
def test_frames_of_every_kind_agree(frame):
    assert as_dict(Interactions.from_frame(frame)) == as_dict(
        Interactions.from_triples(USERS, ITEMS, RATINGS)
    )


def test_frame_columns_are_chosen_by_name():
    frame = pd.DataFrame({"who": USERS, 5: ITEMS})
    x = Interactions.from_frame(frame, user="who", item=5, rating=None, duplicates="last")
    assert set(as_dict(x).values()) == {1.0}
    with pytest.raises(
        InputError, match="rating: found no column 'rating'; pass one of 'who', 5, "
    ):
        Interactions.from_frame(frame, user="who", item=5)
    with pytest.raises(InputError, match=r"user: found no column 'user'; pass one of 'who', 5$"):
        Interactions.from_frame(frame, item=5, rating=None)
    with pytest.raises(InputError, match=r"frame: found ndarray; .*Interactions.from_matrix"):
        Interactions.from_frame(np.eye(3))


def test_matrix_with_ids_in_any_order():
    x = Interactions.from_matrix(np.array([[1, 0], [0, 2], [3, 0]]), user_ids=[30, 10, 20])
    assert x.user_index([10, 30, 10]).tolist() == [1, 0, 1]
    assert x.item_index(1).tolist() == [1]
    assert x.item_ids is None
    assert x.user_ids.tolist() == [30, 10, 20]


def test_matrix_ids_must_fit():
    with pytest.raises(InputError, match="item_ids: found 3 ids for 2 items; pass one id for each"):
        Interactions.from_matrix(np.eye(2), item_ids=["a", "b", "c"])
    with pytest.raises(InputError, match=r"user_ids: 1 id\(s\) occur more than once; give each"):
        Interactions.from_matrix(np.eye(2), user_ids=["a", "a"])
    with pytest.raises(InputError, match=r"user_ids: 2 id\(s\) occur more than once"):
        Interactions.from_matrix(np.eye(3), user_ids=[5, 5, 5])
    with pytest.raises(InputError, match="matrix: found 1 dimension"):
        Interactions.from_matrix(np.ones(2))


def test_direct_construction_validates_and_keeps_float64():
    assert Interactions(sp.coo_matrix(np.eye(2))).user_items.dtype == np.float64
    assert Interactions(np.eye(2, dtype=int)).user_items.dtype == np.float32
    with pytest.raises(InputError, match="user_items: found 1 value"):
        Interactions(np.array([[np.nan]]))


def test_unknown_ids_are_named():
    x = Interactions.from_triples(USERS, ITEMS)
    with pytest.raises(InputError, match=r"users: found 2 unknown id\(s\): 'zo', 'ed'; pass ids"):
        x.user_index(["zo", "al", "ed"])
    with pytest.raises(InputError, match=r"items: found 9 unknown id\(s\): 1, 2, 3, 4, 5 and 4 mo"):
        x.item_index(range(1, 10))


def test_row_numbers_are_range_checked_where_there_are_no_ids():
    x = Interactions.from_matrix(np.eye(3))
    assert x.user_index([2, 0]).tolist() == [2, 0]
    assert x.user_index("2").tolist() == [2]
    with pytest.raises(IdRangeError, match=r"users: .*pass integers from 0 to 2"):
        x.user_index([0, 3])
    with pytest.raises(InputError, match="users: found 1 unknown"):
        x.user_index("three")


def test_an_id_is_its_text():
    assert IdMap(np.array([7, 10])).rows(["10", "7"], name="users").tolist() == [1, 0]
    assert IdMap(np.array(["7", "10", "007"])).rows([10, 7], name="users").tolist() == [1, 0]
    wanted = ["07", "7.0", "+7", "٧", "", "9" * 30, str(2**63), "-0", "7"]
    found = IdMap(np.array([7, 0])).rows(wanted, name="users", unknown="skip")
    assert found.tolist() == [-1] * 8 + [0]


@given(
    st.lists(st.integers(-30, 30), unique=True, max_size=20),
    st.lists(st.integers(-40, 40), max_size=20),
)
def test_an_id_map_agrees_with_a_dict(ids, wanted):
    rows = {id_: row for row, id_ in enumerate(ids)}
    expected = [rows.get(id_, -1) for id_ in wanted]
    for kind in (int, str):
        array = np.array(list(map(kind, ids)), dtype="i8" if kind is int else "U3")
        wanted_array = np.array(wanted, np.int64)
        assert IdMap(array).rows(wanted_array, name="x", unknown="skip").tolist() == expected


def test_an_id_map_checks_its_arguments():
    with pytest.raises(InputError, match="unknown must be 'raise' or 'skip', not 'drop'"):
        IdMap(np.array([1])).rows([1], name="users", unknown="drop")
    assert IdMap(None, 3).rows([2, 5, -1], name="users", unknown="skip").tolist() == [2, -1, -1]


def test_encode_maps_held_out_ratings():
    x = Interactions.from_triples(USERS, ITEMS, RATINGS)
    rows, columns, values = x.encode(["cy", "zz", "al"], [10, 10, 99], [1, 2, 3], unknown="skip")
    assert rows.tolist() == [2]
    assert columns.tolist() == [0]
    assert values.tolist() == [1.0]
    assert values.dtype == np.float32
    assert x.encode(["cy"], ["10"])[2].tolist() == [1.0]
    with pytest.raises(InputError, match=r"users: found 1 unknown id\(s\): 'zz'"):
        x.encode(["zz"], [10])
    with pytest.raises(InputError, match="lengths users 1, items 1, ratings 2"):
        x.encode(["cy"], [10], [1, 2])
    with pytest.raises(InputError, match="ratings: found 1 NaN"):
        x.encode(["cy"], [10], [np.nan])
