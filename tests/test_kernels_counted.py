"""What the row-solver kernels do to memory: global traffic and bank conflicts."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib import resources

from kernel_cases import EVERYTHING, NEEDS_MACHINE, Case, cases, check, draw, run

from gpu_als.core.solvers import ConjugateGradient, NonNegative

pytestmark = NEEDS_MACHINE

STEEP = {"ridge": 1e-3, "spectrum": 1e-2}  # so ill-conditioned that solutions are refined
SHORT = (Case(64, (3, 8), EVERYTHING), Case(64, (30, 32), EVERYTHING))
RESIDENT = (Case(64, (38, 40), EVERYTHING), Case(128, (70, 73), EVERYTHING))
CHUNKED = Case(256, (250, 253), EVERYTHING)
PRIMAL = (
    Case(64, (64, 100), EVERYTHING),
    Case(96, (300,), EVERYTHING),
    Case(128, (128, 304), EVERYTHING),
    Case(160, (300,), EVERYTHING),
)
WIDE = Case(224, (224, 300), EVERYTHING)
TENSOR = Case(64, (64, 100), f"{EVERYTHING} tensor")
HALF = Case(64, (38, 40), "root half")
STEPS = Case(64, (8, 100), "root b0", solver=ConjugateGradient(3))
BOUNDED = Case(64, (8, 100), "root b0 base", solver=NonNegative(1))
SPLIT = Case(64, (300, 172), EVERYTHING, segment=64)
REFINED = tuple(
    replace(case, options="root", **STEEP)
    for case in (*SHORT, *RESIDENT, CHUNKED, *PRIMAL, TENSOR, SPLIT)
)
EXACT = (*SHORT, *RESIDENT, CHUNKED, *PRIMAL, WIDE, TENSOR, HALF, SPLIT, *REFINED)


@cache
def counts_of(case):
    """Run a case; return what each function did to memory."""
    result = run(draw(case))
    if case.ridge:
        check(result)
    return result.counts


def traffic(case):
    """Run a case; return, by function, how often its rows of factors and of z went by."""
    problem = draw(case)
    entries, row = len(problem.arrays["indices"]), problem.arrays["z"][0].nbytes
    fixed = problem.arrays["fixed"][0].nbytes
    return {
        function: (
            one.reads["fixed"].bytes / (entries * fixed),
            one.writes["z"].bytes / (len(case.lengths) * row),
        )
        for function, one in counts_of(case).items()
    }


@cases(*SHORT, *RESIDENT, HALF, *REFINED[:4])
def test_dual_kernels_read_every_row_of_factors_once(case):
    """Even where the solution is refined."""
    (found,) = traffic(case).values()
    assert found == (1, 1)


def test_dual_blocks_read_what_they_cannot_hold_once_for_each_use():
    """The system, the solution and the check; refined solutions are computed twice.

    Each of them but the first finds a chunk that is there already.
    """
    (launch,) = CHUNKED.plan()[1]
    chunks = CHUNKED.k // launch.chunk
    assert chunks * launch.chunk == CHUNKED.k
    for case, passes in ((CHUNKED, 3), (REFINED[4], 4)):
        read = (chunks + (passes - 1) * (chunks - 1)) / chunks
        assert traffic(case) == {"dual_block": (read, 1)}


@cases(*PRIMAL, TENSOR, STEPS, BOUNDED)
def test_primal_kernels_read_every_row_of_factors_once(case):
    assert traffic(case) == {"primal": (1, 1)}


@cases(WIDE, *REFINED[5:10])
def test_primal_kernels_read_twice_what_they_refine_or_have_no_room_to_keep(case):
    assert traffic(case) == {"primal": (2, 1)}


def test_split_rows_are_read_once():
    """Twice where they are refined."""
    assert traffic(SPLIT) == {"split_gram": (1, 0), "split_solve": (0, 1)}
    assert traffic(REFINED[10]) == {"split_gram": (1, 0), "split_solve": (1, 1)}


@cases(*SHORT, *RESIDENT, CHUNKED)
def test_dual_kernels_read_every_entry_once(case):
    problem = draw(case)
    (counts,) = counts_of(case).values()
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
    """Return the wavefronts lost to bank conflicts, by bytes of a lane and line of the source.

    16 bytes for each lane of a warp go in four quarters, 8 bytes in two halves, and these lose
    nothing as long as each is free of conflicts.
    """
    found = Counter()
    for site in counts.conflicting():
        needed = max(site.counts.ideal, site.width // 4 * site.counts.accesses)
        found[site.width, source_line(site.where)] += max(0, site.counts.wavefronts - needed)
    return +found


def is_hot(width, line):
    """Tell vectors, elimination of columns, and what tensor cores are fed with."""
    return width > 8 or re.search(r"load[24]\(|column\[|split_tf32\(", line)


@cases(*EXACT, STEPS, BOUNDED)
def test_hot_places_are_free_of_bank_conflicts(case):
    for counts in counts_of(case).values():
        assert [place for place in lost(counts) if is_hot(*place)] == []


@cases(*EXACT)
def test_bank_conflicts_cost_little(case):
    """Where a panel is updated and a Gram stored, two lanes may meet at a bank."""
    for function, counts in counts_of(case).items():
        share = lost(counts).total() / counts.shared.wavefronts
        assert share <= (0 if function == "dual_warp" else 0.06)


def test_warps_of_short_rows_lose_nothing():
    """Beyond even what vectors need: their loads reach all banks at once."""
    gram = re.compile(r"left\[a\] = load4|right = load4")
    for case in (*SHORT, RESIDENT[0], PRIMAL[0]):
        (counts,) = counts_of(case).values()
        assert any(gram.search(source_line(site.where)) for site in counts.sites)
        assert not any(gram.search(source_line(site.where)) for site in counts.conflicting())


def test_counting_sees_conflicts():
    """Rows of W whose length is a multiple of eight would share banks."""
    patch = (("const int ld = stride % 8 == 4 ? stride : stride + 4;", "const int ld = stride;"),)
    (counts,) = counts_of(replace(SHORT[1], patch=patch)).values()
    assert lost(counts).total() > 0.2 * counts.shared.wavefronts
    assert any(is_hot(*place) for place in lost(counts))
