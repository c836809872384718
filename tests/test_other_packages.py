"""The mappings of docs/other_packages.md, run as printed there, against the packages themselves.

The page's code is executed, so a mapping has one copy. What is compared is the problem of a row: a
package is trained for some iterations and, from the same start, for one iteration more. The two
half-sweeps in between must be those of our model with the mapped parameters, on both sides. That
needs no convergence and no luck with local optima. Where we cannot hand our model the other side's
factors (weights, dense matrices), both are trained to the end and must predict the same.
"""

import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
from helpers import random_ratings

from gpu_als import AlternatingLeastSquares, ExplicitALS, factorize

PAGE = Path(__file__).parents[1] / "docs" / "other_packages.md"


def _read_page() -> dict[tuple[str, str], list[str]]:
    """Return the Python code of the page by (section, subsection); "" is what comes before one."""
    blocks: dict[tuple[str, str], list[str]] = {}
    parts = re.split(r"^(#{1,3}) (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    section = subsection = ""
    for level, title, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        section = title if len(level) < 3 else section
        subsection = title if len(level) == 3 else ""
        if found := re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S):
            blocks[section, subsection] = found
    return blocks


BLOCKS = _read_page()

RATINGS = random_ratings(30, 20, 0.4, 91)
_rng = np.random.default_rng(92)


def _with_values(matrix: sp.csr_matrix, values: Any) -> sp.csr_matrix:
    return sp.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)


COUNTS = _with_values(RATINGS, _rng.integers(1, 10, RATINGS.nnz).astype(float))
WEIGHTS = _with_values(RATINGS, _rng.choice([0.5, 1.0, 4.0], RATINGS.nnz))


@dataclass
class Trained:
    """What a package found, in float64; the biases are None where it has none."""

    users: np.ndarray
    items: np.ndarray
    user_biases: np.ndarray | None = None
    item_biases: np.ndarray | None = None
    mean: float = 0.0


# --- the packages --------------------------------------------------------------------------------


class LensKit:
    """Trains users first, in float32."""

    users_first = True
    tolerance = 1e-4
    imports = ("lenskit.als",)
    names: ClassVar = {}

    def train(self, theirs: Any, matrix: sp.csr_matrix, iterations: int) -> Trained:
        import pandas as pd
        from lenskit.data import from_interactions_df
        from lenskit.training import TrainingOptions

        entries = matrix.tocoo()
        table = {"user_id": entries.row, "item_id": entries.col, "rating": entries.data}
        theirs.config.epochs = iterations
        theirs.train(from_interactions_df(pd.DataFrame(table)), TrainingOptions(rng=17))
        return Trained(*(f.astype(float) for f in (theirs.user_embeddings, theirs.item_embeddings)))

    def ridges(self, theirs: Any, matrix: sp.csr_matrix) -> tuple[float, float]:
        return theirs.config.user_reg, theirs.config.item_reg


class Cmfrec:
    """Trains items first, here in float64 and each row to the end."""

    users_first = False
    tolerance = 1e-6
    imports = ("cmfrec",)
    names: ClassVar = {}
    exact: ClassVar = {"use_cg": False, "max_cd_steps": 0, "use_float": False}

    def train(self, theirs: Any, matrix: sp.csr_matrix, iterations: int, **fit: Any) -> Trained:
        theirs.set_params(niter=iterations, random_state=3, nthreads=1, **self.exact)
        theirs.fit(matrix.tocoo(), **fit)
        biases = [b if len(b) else None for b in (theirs.user_bias_, theirs.item_bias_)]
        return Trained(theirs.A_, theirs.B_, *biases, getattr(theirs, "glob_mean_", 0.0))

    def ridges(self, theirs: Any, matrix: sp.csr_matrix) -> tuple[float, float]:
        return tuple(np.broadcast_to(theirs.lambda_, 6)[2:4])


class Spark:
    """The normal equations of Spark's source (``computeFactors`` in ALS.scala), items first."""

    users_first = False
    tolerance = 1e-6
    imports = ()
    names: ClassVar = {
        "ALS": partial(SimpleNamespace, implicitPrefs=False, nonnegative=False),
    }

    def train(self, theirs: Any, matrix: sp.csr_matrix, iterations: int) -> Trained:
        users = np.random.default_rng(93).standard_normal((matrix.shape[0], theirs.rank))
        for _ in range(iterations):
            items = self.half_sweep(theirs, matrix.T.tocsr(), users)
            users = self.half_sweep(theirs, matrix, items)
        return Trained(users, items)

    def half_sweep(self, theirs: Any, matrix: sp.csr_matrix, fixed: np.ndarray) -> np.ndarray:
        rows = [slice(*ends) for ends in pairwise(matrix.indptr)]
        return np.array([self.row(theirs, matrix.data[r], matrix.indices[r], fixed) for r in rows])

    def row(self, theirs: Any, r: np.ndarray, ids: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        y = fixed[ids]
        if theirs.implicitPrefs:
            c1 = theirs.alpha * np.abs(r)
            lhs = fixed.T @ fixed + (y.T * c1) @ y
            rhs = y.T @ np.where(r > 0, 1 + c1, 0)
            n = np.count_nonzero(r > 0)
        else:
            lhs, rhs, n = y.T @ y, y.T @ r, len(r)
        lhs = lhs + n * theirs.regParam * np.eye(theirs.rank)
        if not theirs.nonnegative:
            return np.linalg.solve(lhs, rhs)
        root = np.linalg.cholesky(lhs)
        return scipy.optimize.nnls(root.T, np.linalg.solve(root, rhs))[0]

    def ridges(self, theirs: Any, matrix: sp.csr_matrix) -> tuple[float, float]:
        """Return one ridge for each side; ``matrix`` must have equally many likes in all rows."""
        likes = [np.unique((matrix > 0).sum(axis=axis)) for axis in (1, 0)]
        return tuple(theirs.regParam * counts.item() for counts in likes)


PACKAGES = {"LensKit": LensKit(), "cmfrec": Cmfrec(), "Spark": Spark()}


def package(section: str) -> Any:
    """Return the package of a section of the page, or skip where it is not installed."""
    found = PACKAGES[section]
    for module in found.imports:
        pytest.importorskip(module, reason=f"{section} is not installed (the extra 'peers')")
    return found


def run(section: str, subsection: str = "", **names: Any) -> dict[str, Any]:
    """Execute the first block of a subsection after those it builds on; return its names.

    ``names`` are what the block is to find in the place of what it would find.
    """
    scope = {"ratings": RATINGS, "counts": COUNTS, "weights": WEIGHTS}
    if section in PACKAGES:
        scope |= PACKAGES[section].names
    keys = list(dict.fromkeys([("Side by side", ""), (section, ""), (section, subsection)]))
    for key in keys:
        if key == keys[-1]:
            scope |= names
        if key in BLOCKS:
            exec(BLOCKS[key][0], scope)
    return scope


# --- the comparison ------------------------------------------------------------------------------


def solve_rows(
    ours: Any, values: sp.csr_matrix, fixed: np.ndarray, biases: Any = None, mean: float = 0.0
) -> tuple[np.ndarray, Any]:
    """Return the factors, and biases if there are any, that ``ours`` finds for the rows."""
    exact = {"dtype": np.float64, "iterations": 0}
    model = type(ours)(**ours.get_params() | exact)
    if isinstance(model, AlternatingLeastSquares):
        model.user_factors = np.zeros((values.shape[0], fixed.shape[1]))
        model.item_factors = fixed
        return model.recalculate_user(np.arange(values.shape[0]), values), None
    model.fit(values)
    model.item_factors = fixed
    if biases is None:
        return model.fold_in_users(values), None
    model.item_biases, model.global_mean = biases, mean
    return model.fold_in_users(values, return_biases=True)


def transposed(ours: Any) -> Any:
    """Return the same model for items as rows."""
    params = ours.get_params()
    if isinstance(params["regularization"], tuple):
        params["regularization"] = params["regularization"][::-1]
    return type(ours)(**params)


def distance(ours: Any, values: sp.csr_matrix, peer: Any, before: Trained, after: Trained) -> float:
    """Return by how much one iteration of ``ours`` misses that of the package, relatively."""
    known_items, known_users = (before, after) if peer.users_first else (after, before)
    users = solve_rows(ours, values, known_items.items, known_items.item_biases, before.mean)
    items = solve_rows(
        transposed(ours), values.T.tocsr(), known_users.users, known_users.user_biases, before.mean
    )
    pairs = [(users[0], after.users), (items[0], after.items)]
    if after.user_biases is not None:
        pairs += [(users[1], after.user_biases), (items[1], after.item_biases)]
    return max(relative(got, expected) for got, expected in pairs)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def two_states(peer: Any, theirs: Any, matrix: sp.csr_matrix) -> tuple[Trained, Trained]:
    """Return what a package has after three iterations, and after four from the same start."""
    return peer.train(theirs, matrix, 3), peer.train(theirs, matrix, 4)


def balanced(state: Trained, user_ridge: float, item_ridge: float) -> Trained:
    """Scale the sides so that both penalties get the geometric mean of the ridges."""
    t = (user_ridge / item_ridge) ** 0.25
    return Trained(state.users * t, state.items / t)


def _regular_counts() -> sp.csr_matrix:
    """Return likes, dislikes and stored zeros: 5 likes in each row and 10 in each column."""
    rows = np.repeat(np.arange(30), 9)
    columns = (rows + np.tile(np.arange(9), 30)) % 15
    kind = np.tile([1, 1, 1, 1, 1, -1, -1, 0, 0], 30)
    return sp.csr_matrix((kind * _rng.integers(1, 10, len(rows)), (rows, columns)), dtype=float)


REGULAR = _regular_counts()

# What the package of a block is trained on: the name it has in the block, and the matrix.
HALF_SWEEPS = {
    ("LensKit", "ImplicitMFScorer"): ("counts", COUNTS),
    ("LensKit", "ImplicitMFScorer, with values and a ridge for each side"): ("counts", COUNTS),
    ("LensKit", "BiasedMFScorer"): ("ratings", RATINGS),
    ("cmfrec", "CMF"): ("ratings", RATINGS),
    ("cmfrec", "CMF, scaled ridge and no biases"): ("ratings", RATINGS),
    ("cmfrec", "CMF, non-negative"): ("ratings", RATINGS),
    ("cmfrec", "CMF_implicit"): ("counts", COUNTS),
    ("cmfrec", "CMF_implicit, logarithms"): ("counts", COUNTS),
    ("Spark", "ALS, ratings"): ("ratings", RATINGS),
    ("Spark", "ALS, non-negative"): ("ratings", RATINGS),
    ("Spark", "ALS, implicit feedback"): ("counts", REGULAR),
}
half_sweeps = pytest.mark.parametrize(
    ("section", "subsection"), HALF_SWEEPS, ids=[f"{a}: {b}" for a, b in HALF_SWEEPS]
)


def half_sweep_case(section: str, subsection: str) -> tuple[Any, ...]:
    """Return our model, its values, the package, and its two states."""
    peer = package(section)
    name, matrix = HALF_SWEEPS[section, subsection]
    scope = run(section, subsection, **{name: matrix})
    theirs, ours = scope["theirs"], scope["ours"]
    states = two_states(peer, theirs, matrix)
    if isinstance(ours, AlternatingLeastSquares):
        states = tuple(balanced(state, *peer.ridges(theirs, matrix)) for state in states)
    return ours, scope.get("values", matrix), peer, *states


@half_sweeps
def test_a_mapped_model_solves_the_rows_of_the_other_package(section, subsection):
    ours, values, peer, before, after = half_sweep_case(section, subsection)
    assert distance(ours, values, peer, before, after) < peer.tolerance


@half_sweeps
@pytest.mark.parametrize("changed", ["ridge", "values"])
def test_the_comparison_notices_one_percent(section, subsection, changed):
    ours, values, peer, before, after = half_sweep_case(section, subsection)
    if changed == "ridge":
        ridge = ours.regularization
        more = tuple(1.01 * r for r in ridge) if isinstance(ridge, tuple) else 1.01 * ridge
        ours.set_params(regularization=more)
    else:
        values = values * 1.01
    assert distance(ours, values, peer, before, after) > 5 * peer.tolerance


# --- LensKit -------------------------------------------------------------------------------------


def test_lenskits_biases_and_predictions_are_those_of_the_page():
    peer = package("LensKit")
    from lenskit.data import ItemList

    scope = run("LensKit", "BiasedMFScorer")
    theirs, ours = scope["theirs"], scope["ours"]
    trained = peer.train(theirs, RATINGS, 4)
    assert scope["mean"] == pytest.approx(theirs.bias.global_bias, rel=1e-6)
    np.testing.assert_allclose(scope["user_biases"], theirs.bias.user_biases, atol=1e-6)
    np.testing.assert_allclose(scope["item_biases"], theirs.bias.item_biases, atol=1e-6)
    ours.set_params(dtype=np.float64)
    ours.user_factors, ours.item_factors = trained.users, trained.items
    exec(BLOCKS["LensKit", "BiasedMFScorer"][1], scope)
    items = ItemList(item_ids=np.arange(RATINGS.shape[1]))
    expected = np.array([theirs(query=u, items=items).scores() for u in range(RATINGS.shape[0])])
    np.testing.assert_allclose(scope["predicted"], expected[RATINGS.nonzero()], rtol=1e-5)


# --- cmfrec --------------------------------------------------------------------------------------


TO_THE_END = {"iterations": 200, "dtype": np.float64, "random_state": 94}
LONG_FIT = partial(ExplicitALS, **TO_THE_END)


def predictions(trained: Trained) -> np.ndarray:
    scores = trained.users @ trained.items.T + trained.mean
    if trained.user_biases is not None:
        scores = scores + trained.user_biases[:, None] + trained.item_biases
    return scores


def our_predictions(model: ExplicitALS) -> np.ndarray:
    users, items = np.indices((len(model.user_factors), len(model.item_factors)))
    return model.predict(users.ravel(), items.ravel()).reshape(users.shape)


def test_cmfrecs_weights_are_sample_weights():
    peer = package("cmfrec")
    # Ratings with two factors behind them, so that training finds one optimum from any start.
    rng = np.random.default_rng(98)
    tastes = 3 + 3 * rng.standard_normal((30, 2)) @ rng.standard_normal((2, 20))
    ratings = _with_values(RATINGS, tastes[RATINGS.nonzero()] + 0.2 * rng.random(RATINGS.nnz))
    scope = run("cmfrec", "CMF, weights", ratings=ratings, ExplicitALS=LONG_FIT)
    trained = peer.train(scope["theirs"], scope["by_item"], 100, W=WEIGHTS.tocsc().data)
    assert relative(our_predictions(scope["ours"]), predictions(trained)) < 1e-6


def test_cmfrecs_missing_cells_as_zeros_are_a_complete_matrix():
    peer = package("cmfrec")
    long = partial(factorize, tol=None, **TO_THE_END)
    scope = run("cmfrec", "CMF, missing cells as zeros", factorize=long)
    trained = peer.train(scope["theirs"], RATINGS, 200)
    assert relative(scope["W"] @ scope["Z"].T, predictions(trained)) < 1e-6


def test_cmfrecs_non_negative_implicit_model_is_one_of_weighted_ratings():
    peer = package("cmfrec")
    # Two groups with tastes of their own, so that two non-negative factors have one optimum.
    same_group = np.indices((30, 20)).sum(axis=0) % 2 == 0
    rng = np.random.default_rng(95)
    seen = rng.random((30, 20)) < np.where(same_group, 0.7, 0.1)
    counts = sp.csr_matrix(np.where(seen, rng.integers(1, 10, seen.shape), 0.0))
    scope = run("cmfrec", "CMF_implicit, non-negative", counts=counts, ExplicitALS=LONG_FIT)
    trained = peer.train(scope["theirs"], counts, 200)
    assert (trained.users == 0).any(), "no constraint would be active"
    assert relative(our_predictions(scope["ours"]), predictions(trained)) < 1e-4


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_cmfrecs_scale_lam_counts_ratings_for_biases_too(scaled, bias):
    peer = package("cmfrec")
    from cmfrec import CMF

    switches = {"user_bias": bias, "item_bias": bias, "center": bias, "scale_lam": scaled}
    states = two_states(peer, CMF(k=4, lambda_=0.3, **switches), RATINGS)
    ours = ExplicitALS(
        factors=4, regularization=0.3, scale_regularization="count" if scaled else None, bias=bias
    )
    assert distance(ours, RATINGS, peer, *states) < peer.tolerance


def test_cmfrec_scales_the_ridge_of_weighted_rows_with_their_weights():
    peer = package("cmfrec")
    from cmfrec import CMF

    theirs = CMF(k=4, lambda_=0.3, scale_lam=True, user_bias=False, item_bias=False, center=False)
    by_item = RATINGS.tocsc().tocoo()
    trained = peer.train(theirs, by_item, 4, W=WEIGHTS.tocsc().data)
    for u in range(RATINGS.shape[0]):
        row = slice(*RATINGS.indptr[u : u + 2])
        y, w = trained.items[RATINGS.indices[row]], WEIGHTS.data[row]
        lhs = (y.T * w) @ y + 0.3 * w.sum() * np.eye(4)
        expected = np.linalg.solve(lhs, y.T @ (w * RATINGS.data[row]))
        np.testing.assert_allclose(trained.users[u], expected, atol=1e-9)


# --- Spark ---------------------------------------------------------------------------------------


def test_by_its_definition_sparks_implicit_rows_differ_from_ours_in_the_ridge_alone():
    rng = np.random.default_rng(96)
    counts = _with_values(RATINGS, rng.choice([-2.0, 0.0, 1.0, 5.0], RATINGS.nnz))
    scope = run("Spark", "ALS, implicit feedback", counts=counts)
    theirs, params = scope["theirs"], scope["ours"].get_params()
    fixed = rng.standard_normal((20, theirs.rank))
    expected = PACKAGES["Spark"].half_sweep(theirs, counts, fixed)
    for u in range(counts.shape[0]):
        likes = np.count_nonzero(counts[u].data > 0)
        ridged = AlternatingLeastSquares(**params | {"regularization": theirs.regParam * likes})
        got, _ = solve_rows(ridged, scope["values"][u], fixed)
        np.testing.assert_allclose(got[0], expected[u], atol=1e-6)


# --- the page ------------------------------------------------------------------------------------


def test_hu_koren_and_volinskys_objective_is_the_one_of_the_page():
    scope = run("Hu, Koren & Volinsky")
    ours, values = scope["ours"], scope["values"]
    fixed = np.random.default_rng(97).standard_normal((20, 4))
    got, _ = solve_rows(ours, values, fixed)
    for u, counts in enumerate(COUNTS.toarray()):
        confidence = 1 + 40 * counts
        lhs = (fixed.T * confidence) @ fixed + 0.1 * np.eye(4)
        expected = np.linalg.solve(lhs, fixed.T @ (confidence * (counts > 0)))
        np.testing.assert_allclose(got[u], expected, atol=1e-6)


def _calls(package_name: str) -> list[str]:
    """Return the calls in a package's lines of the table of defaults."""
    table = PAGE.read_text(encoding="utf-8").partition("| Package | call |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| (\w*) ?\| `(.+)` \|$", table, flags=re.M)
    names = [name for name, _ in lines]
    start = names.index(package_name)
    end = next((i for i in range(start + 1, len(names)) if names[i]), len(names))
    return [call for _, call in lines[start:end]]


@pytest.mark.parametrize("section", ["LensKit", "cmfrec"])
def test_the_defaults_of_the_page_are_those_of_the_package(section):
    package(section)
    scope = run(section)
    for call in _calls(section):
        spelled_out, default = eval(call, scope), eval(call.partition("(")[0] + "()", scope)
        if section == "LensKit":
            assert spelled_out.config == default.config
        else:
            assert spelled_out.get_params() == default.get_params()


def test_every_piece_of_code_on_the_page_is_tested():
    others = {
        ("Side by side", ""),
        ("LensKit", ""),
        ("cmfrec", ""),
        ("cmfrec", "CMF, weights"),
        ("cmfrec", "CMF, missing cells as zeros"),
        ("cmfrec", "CMF_implicit, non-negative"),
        ("Hu, Koren & Volinsky", ""),
    }
    assert set(BLOCKS) == others | set(HALF_SWEEPS)
    assert all(len(BLOCKS[key]) == 1 for key in BLOCKS.keys() - {("LensKit", "BiasedMFScorer")})
