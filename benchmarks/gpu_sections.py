"""The sections of gpu_suite.py: generators of rows, which gpu_run.py runs within their time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from gpu_floor import Work, median_ms
from gpu_peer import PeerError, host_ms, iteration_ms, ranking_ms
from gpu_run import Row
from gpu_task import (
    ALPHA,
    CG,
    EXACT,
    OBJECTIVES,
    SAMPLED_ROWS,
    SMALL,
    Bench,
    Task,
    compared,
    judged,
    relative_errors,
)
from gpu_tools import clocks_meanwhile, clocks_now, gpu_tests, median_clocks, profile, racecheck

from gpu_als import AlternatingLeastSquares
from gpu_als.train.planning import plan

EPOCH_KS = (512, 1024, 2048, 4096, 8192)
RANKED_USERS, N_BEST = 20_000, 10
REGULARIZATION = OBJECTIVES["implicit"].regularization
PEER_PATH, CG_PATH = "implicit, 3 CG steps", "kernels, 3 CG steps"

Case = tuple[str, str, int]  # shape, objective, k


def ceilings(bench: Bench) -> Iterator[Row]:
    """Measure what the device does at best."""
    best = bench.ceilings
    yield {
        "copy_GB/s": best.bytes / 1e9,
        "float32_TFLOP/s": best.flops / 1e12,
        "tf32_TFLOP/s": best.tf32_flops / 1e12,
    }


def peer(bench: Bench) -> Iterator[Row]:
    """Let ``implicit`` train on a small matrix, to see that it does."""
    yield {"note": "no comparisons" if bench.peer is None else bench.peer.words}
    yield from _peer_ms(
        bench,
        {"shape": "small", "k": bench.k, "path": PEER_PATH},
        (iteration_ms, SMALL, bench.k, REGULARIZATION, ALPHA),
        SMALL.device_bytes(bench.k),
    )


def _peer_ms(bench: Bench, name: Row, question: tuple[Any, ...], needed: int) -> Iterator[Row]:
    """Ask the peer for a time; that it cannot tell is no failure of ours, nor takes our time.

    Managed memory beyond the device's own would be moved to and fro, or hang it.
    """
    if bench.peer is None or not bench.peer.usable:
        return
    refused = bench.refusal(needed)
    if refused:
        yield {**name, "note": f"implicit: {refused}"}
        return
    try:
        yield {**name, "ms": bench.peer.ask(bench.left() / 2, *question)}
    except PeerError as error:
        yield {**name, "note": f"implicit: {error}"}


def compile_kernels(bench: Bench) -> Iterator[Row]:
    """Compile what others launch; CuPy's cache on disk may have some."""
    begin = time.perf_counter()
    kernels = bench.backend().compile_kernels(bench.k)
    yield {"k": bench.k, "kernels": kernels, "seconds": time.perf_counter() - begin}


def agreement(bench: Bench) -> Iterator[Row]:
    """Compare every row of a small matrix with the NumPy backend in float64."""
    for objective, solver in [*((name, EXACT) for name in OBJECTIVES), ("implicit", CG)]:
        task = Task(bench, bench.small, objective, bench.k, solver=solver)
        errors, same = [], True
        for side in (0, 1):
            expected = task.float64(side)
            same &= task.repeats(side)
            errors.append(relative_errors(bench.xp.asnumpy(task.factors[side]), expected))
        row = compared(np.concatenate(errors), same)
        name = {"objective": objective, "solver": type(solver).__name__, "k": bench.k}
        yield judged({**name, **row})


def kernels(bench: Bench) -> Iterator[Row]:
    """Time each launch of a half-sweep alone, and what comes before the launches."""
    for objective in ("implicit", "explicit"):
        task = Task(bench, bench.matrix("ml20m"), objective, bench.k)
        for side, side_name in enumerate(("users", "items")):
            task.half(side)
            name = {"objective": objective, "k": bench.k, "side": side_name}
            (held_ms,), _ = median_ms(bench.xp, [partial(task.held, side)])
            total = 0.0
            for launch in task.launches(side):
                # Several in one measurement, so that the host is ahead of the device.
                (ms,), _ = median_ms(bench.xp, [lambda run=launch.run: [run() for _ in range(5)]])
                ms = float(ms) / 5
                total += ms
                achieved = bench.ceilings.achieved(ms, launch.work)
                yield {**name, "rows": launch.rows, "ms": ms, **achieved, "what": launch.what}
            (whole,), _ = median_ms(bench.xp, [partial(task.half, side)])
            rows = len(task.lengths[side])
            yield {**name, "rows": rows, "ms": total, "what": "these launches together"}
            yield {**name, "rows": rows, "ms": float(held_ms), "what": "base and rotation"}
            yield {**name, "rows": rows, "ms": float(whole), "what": "the half-sweep"}


def iterations(bench: Bench, *cases: Case, beside_peer: bool = False) -> Iterator[Row]:
    """Time whole iterations and check them, those of the peer first."""
    for shape, objective, full_width in cases:
        k, size = bench.width(full_width), bench.shape(shape)
        name = {"shape": shape, "objective": objective, "k": k}
        if beside_peer:
            yield from _peer_ms(
                bench,
                {**name, "path": PEER_PATH},
                (iteration_ms, size, k, REGULARIZATION, ALPHA),
                2 * 8 * size.entries + 8 * k * (size.users + size.items),
            )
        refused = bench.refusal(size.device_bytes(k))
        if refused:
            yield {**name, "note": refused}
            continue
        task = Task(bench, bench.matrix(shape), objective, k)
        yield {**name, "path": "kernels", **task.time()}
        yield judged({**name, **task.check()})
        del task


def default_solver(bench: Bench) -> Iterator[Row]:
    """Time the three steps of conjugate gradients that ``AlternatingLeastSquares`` does unasked."""
    for shape in ("ml20m", "lastfm"):
        name = {"shape": shape, "objective": "implicit", "k": bench.k}
        task = Task(bench, bench.matrix(shape), "implicit", bench.k, solver=CG)
        yield {**name, "path": CG_PATH, **task.time()}
        same = task.repeats(0) and task.repeats(1)
        yield {**name, "repeatable": same, "ok": same}
        del task


def general_path(bench: Bench) -> Iterator[Row]:
    """Time iterations by library calls alone."""
    task = Task(bench, bench.matrix("ml20m"), "implicit", bench.k)
    name = {"shape": "ml20m", "objective": "implicit", "k": bench.k, "path": "general"}
    yield {**name, **task.time(bench.general, repeats=2)}


def clocks(bench: Bench) -> Iterator[Row]:
    """Read the clocks before, during and after iterations."""
    pci = bench.xp.cuda.Device().pci_bus_id
    before = clocks_now(pci)
    if not before:
        yield {"note": "the clocks are not known: nvidia-smi is not here, or says nothing"}
        return
    task = Task(bench, bench.matrix("ml20m"), "implicit", bench.k)
    steps = [partial(task.half, side) for side in (0, 1)]
    median_ms(bench.xp, steps, repeats=1)
    with clocks_meanwhile(pci) as meanwhile:
        median_ms(bench.xp, steps, repeats=100_000, enough=0.02 if bench.quick else 3.0)
    for when, samples in (("before", before), ("during", meanwhile), ("after", clocks_now(pci))):
        if samples:
            yield {"when": when, **median_clocks(samples)}


def ranking(bench: Bench) -> Iterator[Row]:
    """Time the best items for many users as a caller would, the peer first."""
    for shape in ("ml20m", "lastfm"):
        size, rng = bench.shape(shape), np.random.default_rng(SAMPLED_ROWS)
        users, items = (
            rng.standard_normal((rows, bench.k), dtype=np.float32)
            for rows in (min(RANKED_USERS, size.users), size.items)
        )
        floor_ms = 2e3 * bench.k * len(users) * len(items) / bench.ceilings.flops
        model = AlternatingLeastSquares(bench.k, use_gpu=True)
        model.user_factors, model.item_factors = users, items
        numbers = np.arange(len(users))
        for filtered in (False, True):
            name = {"shape": shape, "users": len(users), "k": bench.k, "filtered": filtered}
            yield from _peer_ms(
                bench,
                {**name, "path": "implicit, ranking"},
                (partial(ranking_ms, filtered=filtered), size, (users, items), N_BEST),
                8 * len(users) * len(items),
            )
            liked = bench.matrix(shape).csr()[: len(users)] if filtered else None
            recommend = partial(
                model.recommend, numbers, liked, N_BEST, filter_already_liked_items=filtered
            )
            ms = host_ms(recommend)
            yield {**name, "path": "ranking", "ms": ms, "floor_ms": floor_ms,
                   "of_floor": floor_ms / ms}  # fmt: skip
            yield judged({**name, **checked_ranking(users, items, liked, recommend()[0])})


def checked_ranking(users: np.ndarray, items: np.ndarray, liked: Any, found: np.ndarray) -> Row:
    """Compare the scores of the items found for some users with the best there are, in float64."""
    some = np.unique(np.linspace(0, len(users) - 1, SAMPLED_ROWS).astype(int))
    scores = users[some].astype(np.float64) @ items.T.astype(np.float64)
    scale = np.abs(scores).max(axis=1)
    if liked is not None:
        scores[liked[some].nonzero()] = -np.inf
    best = -np.sort(-scores, axis=1)[:, : found.shape[1]]
    theirs = np.take_along_axis(scores, found[some], axis=1)
    either = np.isfinite(best) & np.isfinite(theirs)  # those filtered come where nothing is left
    errors = np.abs(np.where(either, theirs, 0) - np.where(either, best, 0)).max(axis=1) / scale
    errors[(np.isfinite(best) != np.isfinite(theirs)).any(axis=1)] = np.inf
    distinct = all(len(set(row)) == len(row) for row in found[some].tolist())
    return compared(errors, distinct)


def fits(bench: Bench) -> Iterator[Row]:
    """Fit with the data resident and streamed: time, bits, peak memory beside the plan's."""
    matrix = bench.matrix("ml20m").csr()
    longest = max(int(np.diff(rows.indptr).max()) for rows in bench.matrix("ml20m").sides)
    backend, pool = bench.backend(), bench.xp.get_default_memory_pool()
    free = bench.free_bytes()
    likely, most = (  # what a fit needs, and what it makes room for before it has looked at values
        plan(
            *matrix.shape, matrix.nnz, bench.k, model="implicit", exact=True, ones=ones,
            longest=longest, device_memory=free,
        ).device
        for ones in (0.0, 1.0)
    )  # fmt: skip
    assert likely is not None
    assert most is not None
    models = {}
    for path, room, planned in (
        ("resident", free, likely.total),
        ("streamed", cut := most.total - most.data // 2, cut),
    ):
        model = models[path] = AlternatingLeastSquares(
            bench.k, REGULARIZATION, ALPHA, use_cg=False, use_gpu=True, iterations=3, random_state=7
        )
        free_before, used_before = bench.free_bytes(), pool.used_bytes()
        with _room(backend, room):
            model.fit(matrix, show_progress=False)
        # The pool keeps what it has had; the rest of the device's memory is not its own.
        peak = pool.total_bytes() - used_before
        drop = free_before - int(bench.xp.cuda.runtime.memGetInfo()[0])
        assert model.report_ is not None
        seconds = [sum(pair) for pair in model.report_.seconds[1:]]
        yield {
            "shape": "ml20m",
            "objective": "implicit",
            "k": bench.k,
            "fit": path,
            "s_per_iteration": float(np.median(seconds)),
            "pool_GB": peak / 1e9,
            "device_GB": drop / 1e9,
            "planned_GB": planned / 1e9,
            "without_batches_GB": (planned - likely.workspace) / 1e9,
            "ok": peak <= planned,
        }
    same = all(
        np.array_equal(*(np.asarray(getattr(model, side)) for model in models.values()))
        for side in ("user_factors", "item_factors")
    )
    yield {"fit": "streamed as resident", "repeatable": same, "ok": same}


@contextmanager
def _room(backend: Any, available: int) -> Iterator[None]:
    """Let a backend say that so many bytes are free."""
    _, batches = backend.available_memory()
    backend.available_memory = lambda: (available, batches)
    try:
        yield
    finally:
        del backend.available_memory


def precision(bench: Bench) -> Iterator[Row]:
    """Time the other precisions, and report how far their results are from float64."""
    for objective in ("implicit", "explicit"):
        for how in ("tf32x3", "float16"):
            name = {"shape": "ml20m", "objective": objective, "k": bench.k, "path": how}
            task = Task(bench, bench.matrix("ml20m"), objective, bench.k, how)
            yield {**name, **task.time()}
            checked = {**name, **task.check()}
            yield checked if how == "float16" else judged(checked)  # float16 factors are rounded


def epochs(bench: Bench) -> Iterator[Row]:
    """Time an epoch of iALS at ever larger widths."""
    shape, per_flop = bench.shape("msd"), 0.0
    for k in map(bench.width, EPOCH_KS[:2] if bench.quick else EPOCH_KS):
        name = {"shape": "msd", "objective": "ials", "k": k}
        refused = bench.refusal(shape.device_bytes(k))
        if refused:
            yield {**name, "note": refused}
            continue
        matrix = bench.matrix("msd")
        flops = sum(Work.of(np.diff(rows.indptr), k).flops for rows in matrix.sides)
        expected, left = flops * per_flop, bench.left()
        if expected > left:
            yield {**name, "note": f"left out: some {expected:.0f} s, {left:.0f} s are left"}
            continue
        task = Task(bench, matrix, "ials", k)
        row = task.time(repeats=2, enough=5.0)
        per_flop = row["ms"] / 1e3 / flops
        yield {**name, "path": "kernels", **row}
        # Two more epochs and some float64 systems: few where those are large.
        if bench.left() > 3e-3 * row["ms"]:
            yield judged({**name, **task.check(max(4, min(SAMPLED_ROWS, (1 << 29) // k**2)))})
        del task


def tests(bench: Bench) -> Iterator[Row]:
    """Run the tests that need a GPU, in processes of their own."""
    bench.free_bytes()
    yield from gpu_tests(bench.left(), bench.folder / "tests.txt")


def profiler(bench: Bench) -> Iterator[Row]:
    """Profile five launches."""
    bench.free_bytes()
    yield from profile(bench.left(), bench.folder / "ncu.txt", quick=bench.quick)


def races(bench: Bench) -> Iterator[Row]:
    """Look for races in kernels on a small matrix."""
    bench.free_bytes()
    yield from racecheck(bench.left(), bench.folder / "racecheck.txt", quick=bench.quick)
