"""``gpu-als evaluate``: the numbers are those of an independent computation."""

import json

import numpy as np
import pytest

from gpu_als import AlternatingLeastSquares, ExplicitALS
from gpu_als.cli import main
from gpu_als.data.readers import read_triples


def evaluate(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments), "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


def known_pairs(model, file):
    users, items, values = read_triples(file)
    row_of = {str(name): row for row, name in enumerate(model.user_ids)}
    column_of = {str(name): column for column, name in enumerate(model.item_ids)}
    return [
        (row_of[str(u)], column_of[str(i)], float(v))
        for u, i, v in zip(users, items, values, strict=True)
        if str(u) in row_of and str(i) in column_of
    ]


def test_errors_of_ratings(files, capsys):
    found = evaluate(capsys, files / "explicit.npz", files / "test.csv")
    model = ExplicitALS.load(files / "explicit.npz")
    pairs = known_pairs(model, files / "test.csv")
    errors = np.array([
        v - model.global_mean - model.user_biases[u] - model.item_biases[i]
        - model.user_factors[u].astype(float) @ model.item_factors[i].astype(float)
        for u, i, v in pairs
    ])  # fmt: skip
    assert found["metrics"]["RMSE"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)
    assert found["metrics"]["MAE"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)
    assert found["test_ratings"] == len(pairs)
    assert found["dropped"] == 2
    assert found["metrics"]["RMSE"] < 0.6  # the noise is 0.3, the ratings vary by about 1


@pytest.mark.parametrize("trained_on", ["file", "model", None])
def test_ranking(trained_on, files, capsys):
    more = {"file": ["--train", files / "train.csv"], "model": [], None: ["--no-seen"]}[trained_on]
    found = evaluate(capsys, files / "implicit.npz", *more, files / "test.csv", "-k", 5)
    model = AlternatingLeastSquares.load(files / "implicit.npz")
    scores = model.user_factors.astype(float) @ model.item_factors.astype(float).T
    if trained_on:
        for user, item, _ in known_pairs(model, files / "train.csv"):
            scores[user, item] = -np.inf
    liked: dict[int, set[int]] = {}
    for user, item, _ in known_pairs(model, files / "test.csv"):
        liked.setdefault(user, set()).add(item)
    precision, recall, hit = [], [], []
    for user, items in liked.items():
        best = set(np.argsort(-scores[user])[:5].tolist())
        precision.append(len(best & items) / 5)
        recall.append(len(best & items) / len(items))
        hit.append(bool(best & items))
    assert found["ranked_users"] == len(liked)
    assert found["metrics"]["precision@5"] == pytest.approx(np.mean(precision))
    assert found["metrics"]["recall@5"] == pytest.approx(np.mean(recall))
    assert found["metrics"]["hit rate@5"] == pytest.approx(np.mean(hit))
    names = ("precision", "recall", "hit rate", "NDCG", "MAP")
    assert list(found["metrics"]) == [f"{name}@5" for name in names]
    popular = np.broadcast_to(model.item_counts, scores.shape).astype(float).copy()
    popular[np.isinf(scores)] = -np.inf
    hits = [
        len({*np.argsort(-popular[u], kind="stable")[:5]} & items) for u, items in liked.items()
    ]
    assert found["popularity"]["precision@5"] == pytest.approx(np.mean(hits) / 5)


def test_explicit_models_are_ranked_too(files, capsys):
    arguments = ["evaluate", str(files / "explicit.npz"), str(files / "test.csv"), "--no-seen"]
    assert main([*arguments, "--min-rating", "4", "-k", "3"]) == 0
    shown = capsys.readouterr().out
    for name in ("RMSE", "MAE", "precision@3", "NDCG@3", "MAP@3", "dropped       2 of"):
        assert name in shown
    users, _, values = read_triples(files / "test.csv")
    good = {user for user, value in zip(users, values, strict=True) if value >= 4}
    assert f"users ranked  {len(good)}; nothing is left out" in shown
    assert "An explicit model predicts ratings" in shown


def test_a_rating_that_equals_the_least_one_is_a_hit(files, tmp_path, capsys):
    test = tmp_path / "test.csv"
    test.write_text("user,item,rating\nu1,1001,4\nu2,1002,3.999\nu3,1003,4.001\n")
    found = evaluate(capsys, files / "explicit.npz", test, "--no-seen", "--min-rating", 4, "-k", 60)
    assert found["ranked_users"] == 2
    assert found["metrics"]["recall@60"] == 1


def test_split_trains_and_measures(files, capsys):
    found = evaluate(
        capsys, "--split", 0.3, files / "train.csv", "--factors", 3, "--regularization", 0.02,
        "--backend", "numpy", "--seed", 4,
    )  # fmt: skip
    total = len(read_triples(files / "train.csv").users)
    assert found["test_ratings"] == pytest.approx(0.3 * total, rel=0.15)
    assert 0.3 < found["metrics"]["RMSE"] < 0.8
    assert found["dropped"] == 0


def test_nothing_known_is_an_error(files, tmp_path, capsys):
    strange = tmp_path / "strange.csv"
    strange.write_text("user,item,rating\nx,1,2\ny,2,3\n")
    assert main(["evaluate", str(files / "explicit.npz"), str(strange)]) == 2
    assert "no test rating" in capsys.readouterr().err
