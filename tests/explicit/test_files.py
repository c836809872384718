"""Models in files: what is read is what was saved, and broken files are refused."""

import io
import zipfile

import numpy as np
import pytest

from explicit.common import RATINGS, VARIANTS, fit
from gpu_als import ExplicitALS, Interactions
from gpu_als.errors import ModelFileError


@pytest.mark.parametrize(
    "params",
    [*VARIANTS.values(), {"dtype": np.float32, "random_state": None}, {"random_state": 3**99}],
)
def test_save_and_load(tmp_path, params):
    model = fit(**params)
    model.save(tmp_path / "model")
    loaded = ExplicitALS.load(tmp_path / "model.npz")
    for name in ("user_factors", "item_factors", "user_biases", "item_biases"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
        assert getattr(loaded, name).dtype == model.dtype
    assert loaded.global_mean == model.global_mean
    expected = model.get_params()
    if not isinstance(expected["solver"], str):
        expected["solver"] = "auto"
    assert loaded.get_params() == expected
    np.testing.assert_array_equal(loaded.predict([1, 2], [3, 4]), model.predict([1, 2], [3, 4]))
    np.testing.assert_array_equal(
        loaded.recommend(3, RATINGS[3])[0], model.recommend(3, RATINGS[3])[0]
    )
    if isinstance(model.solver, str):
        np.testing.assert_array_equal(loaded.fold_in_users(RATINGS), model.fold_in_users(RATINGS))


def test_ids_are_saved(tmp_path):
    ratings = Interactions.from_triples(["b", "a", "c"], [30, 10, 20], [5.0, 3.0, 1.0])
    buffer = io.BytesIO()
    ExplicitALS(2, random_state=1).fit(ratings).save(buffer)
    buffer.seek(0)
    loaded = ExplicitALS.load(buffer)
    np.testing.assert_array_equal(loaded.user_index(["c", "a"]), [2, 0])
    np.testing.assert_array_equal(loaded.item_index([30]), [2])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.npz"
    fit().save(path)
    return path


def test_a_truncated_file(saved):
    content = saved.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 5):
        saved.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"model\.npz"):
            ExplicitALS.load(saved)


def test_a_corrupted_file(saved):
    content, expected = bytearray(saved.read_bytes()), fit().user_factors
    for place in range(200, len(content), len(content) // 25):
        spoiled = bytearray(content)
        spoiled[place] ^= 0xFF
        saved.write_bytes(spoiled)
        try:
            loaded = ExplicitALS.load(saved)
        except ModelFileError:
            continue
        np.testing.assert_array_equal(loaded.user_factors, expected)  # a byte that nobody reads


def change_arrays(path, **changes):
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": None}, "no ExplicitALS model"),
        ({"kind": "other"}, "no ExplicitALS model"),
        ({"user_factors": None}, "user_factors"),
        ({"item_factors": np.zeros((20, 5))}, "item.factors"),
        ({"item_factors": np.zeros(20)}, "item.factors"),
        ({"item_factors": np.full((20, 4), np.nan)}, "item.factors"),
        ({"item_factors": np.full((20, 4), "a")}, "item.factors"),
        ({"user_biases": np.zeros(3)}, "user_biases"),
        ({"user_biases": np.full(30, "a")}, "user_biases"),
        ({"global_mean": None}, "global_mean"),
        ({"global_mean": np.nan}, "global_mean"),
        ({"global_mean": "a"}, "global_mean"),
        ({"global_mean": np.zeros(2)}, "global_mean"),
        ({"param_factors": -1}, "parameter.*factors"),
        ({"param_rank": 3}, "parameter.*rank"),
        ({"param_dtype": "int8"}, "parameter.*dtype"),
        ({"user_ids": np.arange(3)}, "user_ids"),
    ],
)
def test_an_inconsistent_file(saved, changes, message):
    change_arrays(saved, **changes)
    with pytest.raises(ModelFileError, match=message):
        ExplicitALS.load(saved)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "foreign.npz"
    path.write_text("user,item,rating\n1,2,3\n")
    with pytest.raises(ModelFileError, match=r"foreign\.npz"):
        ExplicitALS.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(ModelFileError, match=r"foreign\.npz"):
        ExplicitALS.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ModelFileError, match="no ExplicitALS model"):
        ExplicitALS.load(path)
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(ModelFileError, match="pickled"):
        ExplicitALS.load(path)
    with pytest.raises(FileNotFoundError):
        ExplicitALS.load(tmp_path / "missing.npz")
