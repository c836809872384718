"""One model, many threads: a reader sees the model before a change or after it, never between.

Wherever it matters, a reader is interrupted: it is run again and again, and a whole change of the
model, as another thread would make it, is put before its first line that looks at the model, its
second, and so on to its last.
"""

import copy
import gc
import io
import itertools
import linecache
import pickle
import re
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_ratings
from threadpoolctl import threadpool_info, threadpool_limits

import gpu_als
from gpu_als import AlternatingLeastSquares, ExplicitALS, Interactions
from gpu_als.backends import get_backend
from gpu_als.backends.numpy import blas_limit
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.errors import NotFittedError
from gpu_als.models import estimator
from gpu_als.models.fitted import Fitted

PACKAGE = str(Path(gpu_als.__file__).parent)
MODELS = str(Path(PACKAGE) / "models")
LOOKS = re.compile(r"\b(self|model)\b")
N_USERS, N_ITEMS, FACTORS = 30, 20, 4
PLAYS = random_ratings(N_USERS, N_ITEMS, 0.3, 7, np.float32)
OTHER_PLAYS = random_ratings(N_USERS, N_ITEMS, 0.3, 8, np.float32)
ITEM_USERS, OTHER_ITEM_USERS = PLAYS.T.tocsr(), OTHER_PLAYS.T.tocsr()
OPTIONS = {"factors": FACTORS, "iterations": 1, "random_state": 5, "num_threads": 1}
SOME = np.array([3, 17, 5])


def implicit(plays=PLAYS, **options):
    model = AlternatingLeastSquares(**OPTIONS, use_gpu=False, **options)
    model.fit(plays, show_progress=False)
    return model


def explicit(ratings=PLAYS, **options):
    return ExplicitALS(**OPTIONS, backend="numpy", **options).fit(ratings)


def with_ids(plays, letter):
    """Name users and items after a letter, but for the first, which a fit to go on with knows."""
    users, items = (["first", *(f"{letter}{n}" for n in range(1, size))] for size in plays.shape)
    return Interactions(plays, users, items)


def saved(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    with np.load(file) as stored:  # "about" holds the time
        return b"".join(stored[name].tobytes() for name in stored if name != "about")


def pickled(model):
    other = pickle.loads(pickle.dumps(model))
    return other.user_factors, other.item_factors


def moved(model):
    other = model.to_cpu()
    return other.user_factors, other.item_factors


def explained(model):
    score, best, (factor, lower) = model.explain(3, PLAYS, 5, N=4)
    return score, best, factor, lower


READS = {
    "recommend": lambda m: m.recommend(SOME, PLAYS[SOME], N=6),
    "recommend all": lambda m: m.recommend(SOME, PLAYS[SOME], N=99, filter_items=[1, 2]),
    "recommend without filters": lambda m: m.recommend(3, None, 6, False),
    "recommend to new users": lambda m: m.recommend(SOME, PLAYS[SOME], recalculate_user=True),
    "similar items": lambda m: m.similar_items(SOME, N=5),
    "similar to new items": lambda m: m.similar_items(
        SOME, recalculate_item=True, item_users=ITEM_USERS[SOME]
    ),
    "similar users": lambda m: m.similar_users(SOME, N=5),
    "predict": lambda m: m.predict([1, 2, 3], [4, 5, 6]),
    "explain": explained,
    "recalculate user": lambda m: m.recalculate_user(SOME, PLAYS[SOME]),
    "recalculate item": lambda m: m.recalculate_item(3, ITEM_USERS[3]),
    "user norms": lambda m: m.user_norms,
    "item norms": lambda m: m.item_norms,
    "XtX": lambda m: m.XtX,
    "YtY": lambda m: m.YtY,
    "save": saved,
    "pickle": pickled,
    "to_cpu": moved,
}
EXPLICIT_READS = {
    "recommend": lambda m: READS["recommend"](m.without_ids()),
    "recommend to new users": READS["recommend to new users"],
    "predict": lambda m: READS["predict"](m.without_ids()),
    "fold in": lambda m: m.fold_in_users(PLAYS[SOME], return_biases=True),
    "save": saved,
}
GROWN = np.array([3, 17, N_ITEMS + 15])  # some that are there, and a new one
WRITES = {
    "partial_fit_users": lambda m: m.partial_fit_users(SOME, OTHER_PLAYS[SOME]),
    "partial_fit_items": lambda m: m.partial_fit_items(GROWN, OTHER_ITEM_USERS[SOME]),
    "fit": lambda m: m.fit(OTHER_PLAYS, show_progress=False),
}


def bits(result):
    """Return something that is equal only for results that are equal to the last bit."""
    if isinstance(result, tuple | list):
        return tuple(bits(one) for one in result)
    if isinstance(result, np.ndarray):
        return str(result.dtype), result.shape, result.tobytes()
    return result


def interrupt_at(place, run, interruption):
    """Call ``run()``, and ``interruption()`` before the ``place``-th line that looks at the model.

    That is a line of the models that names ``self`` or ``model``: between two of them it makes
    no difference when the model changes.

    Returns
    -------
    result : what ``run`` returns
    interrupted : bool
        False if there are fewer such lines.
    """
    lines, interrupted = 0, False

    def trace(frame, event, argument):
        nonlocal lines, interrupted
        file = frame.f_code.co_filename
        if interrupted or not file.startswith(MODELS):
            return None
        if event == "line" and LOOKS.search(linecache.getline(file, frame.f_lineno)):
            if lines == place:
                sys.settrace(former)
                interrupted = True
                interruption()
            lines += 1
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        return run(), interrupted
    finally:
        sys.settrace(former)


def check_interrupted_reads(make, read, write):
    """Put the whole of ``write`` everywhere in ``read``: the answer is the old or the new one.

    And what is worked out meanwhile and kept (norms, Grams, rows of length 1) is not stale later.
    """
    before, after = make(), make()
    write(after)
    old, new = bits(read(before)), bits(read(after))
    answers = set()
    for place in itertools.count():
        model = make()
        found, interrupted = interrupt_at(place, partial(read, model), partial(write, model))
        if not interrupted:
            break
        found = bits(found)
        assert found in (old, new), f"neither the old nor the new answer at place {place}"
        assert bits(read(model)) == new, f"something old was kept at place {place}"
        answers.add(found)
    assert place > 1
    assert answers == {old, new}  # the change did come before and after the decisive line


@pytest.mark.parametrize(
    ("read", "write"),
    [
        *((read, "fit") for read in READS),
        *((read, "partial_fit_items") for read in ("recommend", "similar items", "YtY", "save")),
        *((read, "partial_fit_users") for read in ("similar users", "XtX")),
    ],
)
def test_a_change_in_the_middle_of_a_read_gives_the_old_answer_or_the_new(read, write):
    fitted = pickle.dumps(implicit())
    check_interrupted_reads(lambda: pickle.loads(fitted), READS[read], WRITES[write])


@pytest.mark.parametrize("read", ["recommend", "similar to new items", "explain", "XtX", "save"])
def test_a_model_that_is_emptied_in_the_middle_of_a_read_gives_the_old_answer_or_none(read):
    """As before a fit that is to start afresh: the error is the one that says so."""
    fitted = pickle.dumps(implicit())

    def read_or_fail(model):
        try:
            return READS[read](model)
        except NotFittedError:
            return "not fitted"

    def empty(model):
        model.user_factors = model.item_factors = None

    check_interrupted_reads(lambda: pickle.loads(fitted), read_or_fail, empty)


@pytest.mark.parametrize("read", EXPLICIT_READS)
def test_a_fit_in_the_middle_of_a_read_of_ratings_gives_the_old_answer_or_the_new(read):
    fitted = pickle.dumps(explicit(with_ids(PLAYS, "a")))
    check_interrupted_reads(
        lambda: pickle.loads(fitted),
        EXPLICIT_READS[read],
        lambda model: model.fit(with_ids(OTHER_PLAYS, "b")),
    )


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (implicit, saved),
        (implicit, lambda model: learnt(pickle.loads(pickle.dumps(model)))),
        (implicit, lambda model: learnt(model.to_cpu())),
        (explicit, saved),
    ],
    ids=["save", "pickle", "to_cpu", "save ratings"],
)
def test_ids_and_factors_stay_together(make, read):
    """A fit to other users in the middle changes nothing of what is saved, or all of it."""
    fitted = pickle.dumps(make(with_ids(PLAYS, "a")))
    check_interrupted_reads(
        lambda: pickle.loads(fitted),
        read,
        lambda model: model.fit(with_ids(OTHER_PLAYS, "b"), show_progress=False),
    )


@pytest.mark.parametrize("make", [implicit, explicit])
def test_a_file_of_recommendations_is_of_one_model(tmp_path, monkeypatch, make):
    """A fit between two blocks of users changes nothing of the file."""
    monkeypatch.setattr(estimator, "_USERS_AT_ONCE", 12)
    model, open_file = make(), estimator.recommendation_file
    model.recommend_to_file(tmp_path / "expected.npy", PLAYS, N=3, show_progress=False)
    before, blocks = learnt(model), []

    @contextmanager
    def open_and_fit_after_each_block(*arguments, **options):
        with open_file(*arguments, **options) as write:

            def write_and_fit(*block):
                write(*block)
                model.fit(OTHER_PLAYS, show_progress=False)
                blocks.append(block)

            yield write_and_fit

    monkeypatch.setattr(estimator, "recommendation_file", open_and_fit_after_each_block)
    model.recommend_to_file(tmp_path / "found.npy", PLAYS, N=3, show_progress=False)
    assert len(blocks) == 3
    assert learnt(model) != before
    assert (tmp_path / "found.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


LEARNT = (
    "user_factors", "item_factors", "user_biases", "item_biases", "global_mean", "user_ids",
    "item_ids",
)  # fmt: skip


def learnt(model):
    """Return all that fits change, as another thread would find it now."""
    found = copy.copy(model)
    return bits([getattr(found, name, None) for name in LEARNT])


def states_during(write, model):
    """Return what is found before every line of the package that ``write`` runs, and after it."""
    found = [learnt(model)]

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and (now := learnt(model)) != found[-1]:
            found.append(now)
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        write(model)
    finally:
        sys.settrace(former)
    if learnt(model) != found[-1]:
        found.append(learnt(model))
    return found


@pytest.mark.parametrize(
    ("make", "write"), [*((implicit, write) for write in WRITES), (explicit, "fit")]
)
def test_a_change_is_seen_as_a_whole(make, write):
    """Readers before every line of the change find the old model or the new one."""
    before, after = make(), make()
    WRITES[write](after)
    assert states_during(WRITES[write], make()) == [learnt(before), learnt(after)]


@pytest.mark.parametrize("make", [implicit, explicit])
def test_a_fit_to_other_users_is_seen_as_a_whole(make):
    """Their ids and their factors come together."""

    def write(model):
        model.fit(with_ids(OTHER_PLAYS, "b"), show_progress=False)

    before, after = make(with_ids(PLAYS, "a")), make(with_ids(PLAYS, "a"))
    write(after)
    found = states_during(write, make(with_ids(PLAYS, "a")))
    assert found == [learnt(before), learnt(after)]


def test_a_fit_with_a_callback_shows_the_model_of_each_iteration():
    """Factors and ids of the new data, from the first iteration on."""
    model, shown = implicit(with_ids(PLAYS, "a")), []
    before = learnt(model)
    model.iterations = 3

    def callback(*_):
        shown.append(learnt(model))
        assert model.user_ids[1] == "b1"

    found = states_during(
        lambda m: m.fit(with_ids(OTHER_PLAYS, "b"), show_progress=False, callback=callback), model
    )
    assert found == [before, *shown]
    assert len(shown) == 3


class WatchedLock:
    """A lock that tells when somebody is about to wait for it."""

    def __init__(self):
        self.lock, self.awaited = threading.RLock(), threading.Event()

    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.awaited.set()
            self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


@pytest.mark.parametrize("side", ["users", "items"])
def test_partial_fits_at_the_same_time_both_land(monkeypatch, side):
    """A second one, begun in the middle of the first, waits for it and loses nothing of it."""
    name, rows = {
        "users": ("partial_fit_users", OTHER_PLAYS),
        "items": ("partial_fit_items", OTHER_ITEM_USERS),
    }[side]
    expected = implicit()
    for row in (3, 17):
        getattr(expected, name)([row], rows[row])

    model = implicit()
    model._writing = lock = WatchedLock()
    begun, replaced = threading.Event(), Fitted.replaced

    def second():
        getattr(model, name)([17], rows[17])
        lock.awaited.set()  # in case it need not wait

    def replace_in_the_middle(self, **parts):
        """Have the second begin when the first has taken the former rows and changed its own."""
        if threading.current_thread() is threading.main_thread() and not begun.is_set():
            begun.set()
            thread.start()
            assert lock.awaited.wait(60)
        return replaced(self, **parts)

    thread = threading.Thread(target=second)
    monkeypatch.setattr(Fitted, "replaced", replace_in_the_middle)
    getattr(model, name)([3], rows[3])
    thread.join(60)
    assert begun.is_set()
    assert learnt(model) == learnt(expected)


def in_threads(*functions):
    """Call functions at the same time, each in a thread of its own; raise what one of them did."""
    start = threading.Barrier(len(functions))

    def run(function):
        start.wait(60)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


@pytest.mark.parametrize(("make", "num_threads"), [(implicit, 2), (explicit, 1)])
def test_many_threads_read_what_one_thread_reads(make, num_threads):
    """From the very first call on, when nothing that is kept has been worked out yet."""
    model = make().set_params(num_threads=num_threads)
    reads = list((READS if make is implicit else EXPLICIT_READS).values())
    alone = copy.copy(model)
    expected = [bits(read(alone)) for read in reads]

    def read_all(first):
        order = [(first + place) % len(reads) for place in range(len(reads))]
        for place in order * 3:
            assert bits(reads[place](model)) == expected[place]

    in_threads(*(partial(read_all, first) for first in range(8)))


def test_threads_that_read_and_threads_that_change_the_model():
    """Every row found is one of two versions, and recommendations are those of one model."""
    model = implicit().set_params(num_threads=2)
    rows = [ITEM_USERS[SOME], OTHER_ITEM_USERS[SOME]]
    versions, answers = [], []
    for some in rows:
        model.partial_fit_items(SOME, some)
        versions.append(bits(model.item_factors))
        answers.append(bits(model.recommend(SOME, PLAYS[SOME], recalculate_user=True)))
    assert versions[0] != versions[1]
    assert answers[0] != answers[1]
    done = threading.Event()

    def write():
        try:
            for turn in range(30):
                model.partial_fit_items(SOME, rows[turn % 2])
        finally:
            done.set()

    def read():
        for _ in range(10_000):
            assert bits(model.item_factors) in versions
            assert bits(model.recommend(SOME, PLAYS[SOME], recalculate_user=True)) in answers
            if done.is_set():
                break

    in_threads(write, read, read)
    model.partial_fit_items(SOME, rows[0])
    assert bits(model.recommend(SOME, PLAYS[SOME], recalculate_user=True)) == answers[0]


def test_tasks_that_nobody_waits_for_any_more_are_not_begun():
    """As when one of them fails: what has been begun ends, and the rest of the queue is let go."""
    backend, go_on, begun = NumpyBackend(2), threading.Event(), []

    def task(number):
        begun.append(number)
        assert number == 0 or go_on.wait(60)
        return number

    results = backend.map(task, range(100))
    assert next(results) == 0
    results.close()
    go_on.set()
    assert list(backend.map(str, range(50))) == list(map(str, range(50)))  # the queue is empty
    assert len(begun) <= 3  # the first, and one in each thread


def blas_threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_blas_has_its_threads_back_after_the_last_of_many():
    """The limit belongs to the whole process: the first to leave must not lift it for others."""
    backend = NumpyBackend(1)
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        first, second = backend.session(), backend.session()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before
        model = implicit()

        def fail():
            with pytest.raises(IndexError):
                model.recommend(N_USERS, PLAYS[0])
            with pytest.raises(ValueError, match="column"):
                model.fold_in_users(sp.csr_matrix((1, N_ITEMS + 1), dtype=np.float32))

        in_threads(*[partial(model.recommend, SOME, PLAYS[SOME])] * 3, fail, fail)
        assert blas_threads() == before


def test_blas_has_its_threads_back_whichever_thread_leaves_last():
    """The first to come has left, but still runs."""
    backend = NumpyBackend(1)
    inside, may_leave, left, may_end = (threading.Event() for _ in range(4))

    def first():
        with backend.session():
            inside.set()
            may_leave.wait(60)
        left.set()
        may_end.wait(60)

    thread = threading.Thread(target=first)
    former = [(library, library.num_threads) for library in blas_limit._libraries()]
    try:
        for library, _ in former:
            blas_limit._set(library, 2)
        thread.start()
        assert inside.wait(60)
        with backend.session():
            may_leave.set()
            assert left.wait(60)
            assert blas_threads() == {1}
        after = blas_threads()
        may_end.set()
        thread.join()
    finally:
        for library, count in former:
            blas_limit._set(library, count)
    assert after == {2}


def test_backends_are_let_go_with_their_threads():
    pools = []
    for num_threads in range(1, 41):
        backend = get_backend("numpy", num_threads=num_threads)
        assert list(backend.map(abs, [-1, -2])) == [1, 2]
        pools.append(weakref.ref(backend))
    del backend
    gc.collect()
    assert sum(pool() is not None for pool in pools) <= 4
