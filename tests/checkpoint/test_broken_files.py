"""Files that are not checkpoints, or a broken one, are refused."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.common import (
    BY_HYPOTHESIS,
    CASES,
    N_ITEMS,
    N_USERS,
    RATINGS,
    assert_same,
    explicit,
    fit,
    refuse,
    rewritten,
    state,
)
from gpu_als.data.model_file import read_arrays
from gpu_als.errors import CheckpointError


@BY_HYPOTHESIS
@given(data=st.data())
def test_every_truncation_is_refused(saved, data, tmp_path_factory):
    whole = saved[explicit].read_bytes()
    file = tmp_path_factory.mktemp("cut") / "s.npz"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refuse(file, "truncated|corrupted")


@BY_HYPOTHESIS
@given(data=st.data())
def test_a_flipped_byte_is_refused_or_harmless(saved, data, tmp_path_factory):
    whole = bytearray(saved[explicit].read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    file = tmp_path_factory.mktemp("flipped") / "s.npz"
    file.write_bytes(whole)
    try:
        model = fit(explicit(), resume=file)
    except CheckpointError:
        return
    assert_same(model, fit(explicit()))  # only dates and the like are outside the checksums


@pytest.mark.parametrize("content", [b"", b"user,item\n1,2\n", b"PK\x05\x06", b"\x93NUMPY"])
def test_files_of_another_kind_are_refused(content, tmp_path):
    file = tmp_path / "s.npz"
    file.write_bytes(content)
    refuse(file, r"s\.npz: ")


def test_models_and_other_arrays_are_refused(tmp_path):
    fit(explicit()).save(tmp_path / "model.npz")
    np.savez(tmp_path / "arrays.npz", user_factors=np.ones((N_USERS, 8), np.float32))
    sp.save_npz(tmp_path / "matrix.npz", RATINGS)
    for name in ("model", "arrays", "matrix"):
        refuse(tmp_path / f"{name}.npz", "not a checkpoint of this version of gpu_als; pass a file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_factors": np.full((N_USERS, 8), np.nan, np.float32)}, "hold NaN or inf"),
        ({"item_factors": np.full((N_ITEMS, 8), np.inf, np.float32)}, "hold NaN or inf"),
        ({"user_factors": np.ones((N_USERS, 7), np.float32)}, r"of the shapes \(\(40, 8\)"),
        ({"item_factors": np.ones(N_ITEMS * 8, np.float32)}, "of the shapes"),
        ({"item_factors": np.ones((N_USERS, 8), np.float32)}, "of the shapes"),
        ({"user_factors": np.ones((N_USERS, 8))}, "not float32 arrays"),
        ({"user_factors": np.full((N_USERS, 8), "x")}, "incomplete or contradicts itself"),
        ({"user_factors": None}, "incomplete or contradicts itself"),
        ({"kind": "gpu_als checkpoint 0"}, "not a checkpoint of this version"),
        ({"state": None}, "incomplete or contradicts itself"),
        ({"state": ""}, "incomplete or contradicts itself"),
        ({"state": np.zeros(3)}, "incomplete or contradicts itself"),
        ({"state": "[]"}, "incomplete or contradicts itself"),
        ({"state": 100_000 * "["}, "incomplete or contradicts itself"),
    ],
)
def test_a_state_that_lacks_something_is_refused(change, message, saved, tmp_path):
    refuse(rewritten(saved[explicit], tmp_path, **change), message)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": [1.0]},
        {"losses": [1.0, 2.0, "3"]},
        {"losses": 3},
        {"seconds": [[1.0]] * 3},
        {"metrics": [{"rmse": 1.0}]},
        {"metrics": [{}] * 3},
        {"metrics": [{"rmse": None}] * 3},
        {"best_iteration": 4},
        {"best_iteration": -1},
        {"best_iteration": 1},  # without a validation set the last is the best
        {"max_residual": "0"},
        {"mood": "good"},
    ],
)
def test_a_report_that_contradicts_itself_is_refused(change, saved, tmp_path):
    content = json.loads(str(read_arrays(saved[explicit])["state"]))
    content["report"] |= change
    file = rewritten(saved[explicit], tmp_path, state=json.dumps(content))
    refuse(file, "incomplete or contradicts itself .* start afresh without resume")


def test_best_factors_are_checked_like_the_others(tmp_path):
    make, params, how = CASES["explicit, best at the start"]
    file = state(tmp_path, make(**params), **how)
    users = read_arrays(file)["best_user_factors"]
    for change, message in ((users * np.nan, "NaN"), (users[:3], "shapes"), (None, "incomplete")):
        (tmp_path / "broken").mkdir(exist_ok=True)
        broken = rewritten(file, tmp_path / "broken", best_user_factors=change)
        with pytest.raises(CheckpointError, match=message):
            fit(make(**params), resume=broken, **how)
