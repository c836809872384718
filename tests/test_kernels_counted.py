"""What the row-solver kernels do to memory: global traffic, bank conflicts, races.

Counting kernels look for races in shared memory as they go, and raise at the first.
"""

import re
from collections import Counter
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from kernel_cases import EVERYTHING, NEEDS_COMPILER, Case, cases, check, compile_all, draw, run

from gpu_als.core.solvers import ConjugateGradient, NonNegative

pytestmark = NEEDS_COMPILER

STEEP = {"ridge": 1e-3, "spectrum": 1e-2}  # so ill-conditioned that solutions are refined
SHORT = (Case(64, (3, 8), EVERYTHING), Case(64, (30, 32), EVERYTHING))
RESIDENT = (Case(64, (38, 40), EVERYTHING), Case(256, (97, 100), EVERYTHING))
CHUNKED = Case(256, (250, 253), EVERYTHING)
PRIMAL = (
    Case(64, (64, 100), EVERYTHING),
    Case(96, (300,), EVERYTHING),
    Case(128, (128, 304), EVERYTHING),
    Case(160, (300,), EVERYTHING),
)
TENSOR = Case(64, (64, 100), f"{EVERYTHING} tensor")
HALF = Case(64, (38, 40), "root half")
STEPS = Case(64, (8, 100), "root b0", solver=ConjugateGradient(3))
BOUNDED = Case(64, (8, 100), "root b0 base", solver=NonNegative(1))
SPLIT = Case(64, (300, 172), EVERYTHING, segment=64)
REFINED = tuple(
    replace(case, options="root", **STEEP)
    for case in (*SHORT, *RESIDENT, CHUNKED, *PRIMAL, TENSOR, SPLIT)
)
EXACT = (*SHORT, *RESIDENT, CHUNKED, *PRIMAL, TENSOR, HALF, SPLIT, *REFINED)


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """Compile all kernels at the start, several at a time."""
    compile_all((*EXACT, STEPS, BOUNDED), count=True)


@cases(*EXACT, STEPS, BOUNDED)
def test_no_thread_races_another(case):
    check(run(draw(case), count=True))


def traffic(case):
    """Run a case; return, by function, how often its rows of factors and of z went by."""
    problem = draw(case)
    counts = run(problem, count=True).counts
    entries, row = len(problem.arrays["indices"]), problem.arrays["z"][0].nbytes
    fixed = problem.arrays["fixed"][0].nbytes
    return {
        function: (
            one.reads["fixed"].bytes / (entries * fixed),
            one.writes["z"].bytes / (len(case.lengths) * row),
        )
        for function, one in counts.items()
    }


@cases(*SHORT, *RESIDENT, HALF, *REFINED[:4])
def test_dual_kernels_read_every_row_of_factors_once(case):
    """Even where the solution is refined."""
    (found,) = traffic(case).values()
    assert found == (1, 1)


def test_dual_blocks_read_what_they_cannot_hold_once_for_each_use():
    """The system, the solution and the check; refined solutions are computed twice."""
    assert traffic(CHUNKED) == {"dual_block": (3, 1)}
    assert traffic(REFINED[4]) == {"dual_block": (4, 1)}


@cases(*PRIMAL, TENSOR, STEPS, BOUNDED, *REFINED[5:10])
def test_primal_kernels_read_every_row_of_factors_twice(case):
    assert traffic(case) == {"primal": (2, 1)}


@cases(SPLIT, REFINED[10])
def test_split_rows_are_read_twice(case):
    """To form the systems and to check them."""
    assert traffic(case) == {
        "split_gram": (1, 0), "split_solve": (0, 0), "split_check": (1, 0), "split_finish": (0, 1),
    }  # fmt: skip


@cases(*SHORT, *RESIDENT, CHUNKED)
def test_dual_kernels_read_every_entry_once(case):
    problem = draw(case)
    (counts,) = run(problem, count=True).counts.values()
    for name in ("indices", "root", "tau", "offset"):
        assert counts.reads[name].bytes == 4 * len(problem.arrays["indices"])


@cases(replace(RESIDENT[0], options="root", ridge=0.0))
def test_refused_rows_are_not_written(case):
    assert traffic(case) == {"dual_block": (1, 0)}


# Bank conflicts


def source_line(where):
    """Return a line of a kernel's source, given ``file:number``."""
    file, number = where.split(":")
    source = resources.files("gpu_als.backends.cupy") / "kernels" / file
    return source.read_text("utf-8").splitlines()[int(number) - 1].strip()


def lost(counts):
    """Return the wavefronts lost to bank conflicts, by line of the source.

    16 bytes for each lane of a warp go in four quarters, 8 bytes in two halves, and these lose
    nothing as long as each is free of conflicts.
    """
    found = Counter()
    for site in counts.worst_sites(1000):
        line = source_line(site.where)
        parts = 4 if re.search("load4|store4", line) else 2 if "load2" in line else 1
        needed = max(site.counts.ideal, parts * site.counts.accesses)
        found[line] += max(0, site.counts.wavefronts - needed)
    return +found


# Reads and writes of vectors, elimination of columns, and what tensor cores are fed with.
HOT = re.compile(r"load[24]\(|store4\(|column\[|split_tf32\(")


@cases(*EXACT, STEPS, BOUNDED)
def test_hot_places_are_free_of_bank_conflicts(case):
    for counts in run(draw(case), count=True).counts.values():
        assert [line for line in lost(counts) if HOT.search(line)] == []


@cases(*EXACT)
def test_bank_conflicts_cost_little(case):
    """Where a panel is updated and a Gram stored, two lanes may meet at a bank."""
    for function, counts in run(draw(case), count=True).counts.items():
        share = sum(lost(counts).values()) / counts.shared.wavefronts
        assert share <= (0 if function == "dual_warp" else 0.05)


def test_warps_of_short_rows_lose_nothing():
    """Beyond even what vectors need: their loads reach all banks at once."""
    gram = re.compile(r"left\[a\] = load4|right = load4")
    for case in (*SHORT, RESIDENT[0], PRIMAL[0]):
        (counts,) = run(draw(case), count=True).counts.values()
        assert counts.shared.wavefronts > 0
        assert not any(gram.search(source_line(s.where)) for s in counts.worst_sites(1000))


def test_counting_sees_conflicts():
    """Rows of W whose length is a multiple of eight would share banks."""
    patch = (("const int ld = stride % 8 == 4 ? stride : stride + 4;", "const int ld = stride;"),)
    (counts,) = run(draw(replace(SHORT[1], patch=patch)), count=True).counts.values()
    assert sum(lost(counts).values()) > 0.2 * counts.shared.wavefronts
    assert np.any([HOT.search(line) for line in lost(counts)])
