"""The launch plan, a pure function, held to its promises for many shapes and every device."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvrtc import DEVICES, SOLVERS, rows_of_every_length, specialisations

from gpu_als.backends.cupy.launch import SEGMENT, DeviceLimits, Launch, Plan, plan_half_sweep
from gpu_als.core.packing import Packing, pack_rows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative

BY_HYPOTHESIS = settings(max_examples=150)
# 8.6 and 8.9 are planned for as 12.0, and 10.0 as 9.0.
EVERY_DEVICE = pytest.mark.parametrize("device", [75, 80, 90, 120], ids="sm_{}".format)
EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)

# The largest systems that fit: Cholesky, conjugate gradients, non-negative.
LARGEST = {
    75: (128, 128, 96), 80: (224, 224, 160), 90: (256, 256, 192), 120: (160, 160, 128),
}  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A plan and what it was made from; ``lengths`` and ``indefinite`` by place."""

    plan: Plan
    packing: Packing
    lengths: np.ndarray
    indefinite: np.ndarray
    k: int
    solver: object
    limits: DeviceLimits
    options: dict

    def __repr__(self):
        return f"k={self.k} {self.solver} {self.limits} {self.options}\n{self.plan}"

    def lengths_of(self, launch):
        return self.lengths[launch.start : launch.stop]

    def by_place(self):
        """Return the launches of each span, those with the lowest places first."""
        return [
            sorted(
                (one for one in self.plan.launches if span.start <= one.start < span.stop),
                key=lambda one: one.start,
            )
            for span in self.packing.spans
        ]


def planned(counts, indefinite, k, solver, limits, *, batch_elements=1 << 40, **options):
    """Plan a half-sweep over rows of ``counts`` entries."""
    packing = pack_rows(counts, k, batch_elements, indefinite=indefinite)
    places = np.append(packing.order, np.array(packing.long_rows, np.int64))
    plan = plan_half_sweep(packing, k, solver, limits, **options)
    options = {"tensor_cores": False, "stored_half": False, "segment": SEGMENT} | options
    return Planned(plan, packing, counts[places], indefinite[places], k, solver, limits, options)


def definite(*counts):
    """Return what ``planned`` asks of definite rows."""
    return np.array(counts, np.int64), np.zeros(len(counts), bool)


# What holds for every plan


def check_every_row_is_solved_once(case):
    runs = [(one.start, one.stop) for one in case.plan.launches] + [*case.plan.rest]
    assert all(start < stop for start, stop in runs)
    place = 0
    for start, stop in sorted(runs):
        assert start == place
        place = stop
    assert place == len(case.lengths)


def check_limits_of_the_device(case):
    for launch in case.plan.launches:
        assert 0 < launch.shared_bytes <= case.limits.shared_per_block
        assert launch.shared_bytes % 16 == 0  # 16-byte accesses; warps lie one behind the other
        assert (launch.functions != ()) == (launch.kernel == "split")
        if launch.functions:
            assert launch.shared_bytes == max(shared_bytes for _, shared_bytes in launch.functions)
        assert 0 < launch.block <= 1024
        assert launch.block % 32 == 0
        assert (launch.grid - 1) * launch.rows_per_block < launch.stop - launch.start
        assert launch.stop - launch.start <= launch.grid * launch.rows_per_block


def check_rows_of_dual_kernels(case):
    for launch in case.plan.launches:
        if not launch.kernel.startswith("dual"):
            continue
        assert isinstance(case.solver, Cholesky)
        assert not case.indefinite[launch.start : launch.stop].any()
        macros = dict(launch.macros)
        if launch.kernel == "dual_warp":
            entries = 8 * macros["TILES"]
            assert entries <= 32  # lane i has row i
            assert launch.rows_per_block == macros["WARPS"] == launch.block // 32
        else:
            edge, stride = macros["EDGE"], case.k + -case.k % 4
            entries = edge * macros["TILES"]
            assert launch.block == edge**2 >= entries  # thread i has row i
            assert launch.rows_per_block == 1
            assert launch.chunk == stride or launch.chunk % 32 == 0
            assert 0 < launch.chunk <= stride
        lengths = case.lengths_of(launch)
        assert not lengths.any() if launch.empty else lengths.min() >= 1
        assert lengths.max() <= min(entries, case.k - 1)


def check_rows_of_primal_kernels(case):
    for launch in case.plan.launches:
        if launch.kernel.startswith("dual"):
            continue
        macros, lengths = dict(launch.macros), case.lengths_of(launch)
        size = 2 * macros["EDGE"] * macros["UNITS"]
        assert size % 32 == 0
        assert case.k <= size < case.k + 32
        assert launch.block == macros["EDGE"] ** 2 >= size  # thread c has column c
        assert launch.rows_per_block == 1
        assert SOLVERS[macros["SOLVER"]] == case.solver
        assert "SIGNED" in macros or not case.indefinite[launch.start : launch.stop].any()
        # Of rows shorter than k the dual form is the more accurate one.
        has_dual = isinstance(case.solver, Cholesky) and "SIGNED" not in macros
        assert lengths.min() >= (case.k if has_dual else 1)
        longest = 2 * case.options["segment"]
        assert lengths.max() <= longest if launch.kernel == "primal" else lengths.min() > longest


def check_macros(case):
    tensor_cores = case.options["tensor_cores"] and case.limits.architecture >= 80
    tensor_cores = tensor_cores and not case.options["stored_half"]
    for launch in case.plan.launches:
        macros = dict(launch.macros)
        assert len(macros) == len(launch.macros)
        assert ("STORED_HALF" in macros) == case.options["stored_half"]
        assert ("TENSOR_CORES" in macros) == (tensor_cores and not launch.kernel.startswith("dual"))


def check_paths(case):
    solved_by = {Cholesky: "primal", ConjugateGradient: "cg", NonNegative: "nnls"}
    paths = {"dual_warp": "dual", "dual_block": "dual", "split": "long"}
    paths["primal"] = solved_by[type(case.solver)]
    for launch in case.plan.launches:
        assert launch.path == ("shared" if launch.empty else paths[launch.kernel])


def check_order(case):
    """Longer rows are higher on the ladder, and come first."""

    def rung(launch):
        macros = dict(launch.macros)
        kernels = ("dual_warp", "dual_block", "primal", "split")
        sizes = macros.get("EDGE", 0), macros.get("TILES", 0), not launch.empty
        return kernels.index(launch.kernel), *sizes

    for launches in case.by_place():
        for below, above in pairwise(launches):
            assert rung(below) < rung(above)
            assert case.lengths_of(below).max() < case.lengths_of(above).min()
    starts = [launch.start for launch in case.plan.launches]
    assert starts == sorted(starts, reverse=True)


CHECKS = [
    check_every_row_is_solved_once, check_limits_of_the_device, check_rows_of_dual_kernels,
    check_rows_of_primal_kernels, check_macros, check_paths, check_order,
]  # fmt: skip


@EVERY_DEVICE
def test_every_length_and_many_k(device):
    """With all options on; k at the edges of every size, and between them."""
    packing, limits = rows_of_every_length(), DEVICES[device]
    counts = np.arange(2 * SEGMENT + 2).repeat(2)[packing.order]
    indefinite = packing.order % 2 == 1
    options = {"tensor_cores": True, "stored_half": True, "segment": SEGMENT}
    edges = {32 * n + more for n in range(1, 19) for more in (-1, 0, 1)}
    for solver in SOLVERS:
        # The other solvers have no dual form, so little depends on k.
        step = 7 if isinstance(solver, Cholesky) else 53
        for k in sorted(edges.union(range(1, 601, step))):
            plan = plan_half_sweep(packing, k, solver, limits, **options)
            case = Planned(plan, packing, counts, indefinite, k, solver, limits, options)
            for check in CHECKS:
                check(case)


LENGTHS = st.one_of(st.integers(0, 40), st.integers(0, 620), st.integers(0, 3 * SEGMENT))
LIMITS = st.one_of(
    st.sampled_from([*DEVICES.values()]),
    st.builds(
        lambda architecture, block, more: DeviceLimits(architecture, block, block + more),
        st.sampled_from([*DEVICES]), st.integers(1 << 10, 1 << 18), st.integers(0, 1 << 17),
    ),
)  # fmt: skip
PLANS = st.builds(
    lambda rows, *args, **kwargs: planned(
        np.array([length for length, _ in rows], np.int64),
        np.array([indefinite for _, indefinite in rows], bool),
        *args, **kwargs,
    ),
    st.lists(st.tuples(LENGTHS, st.booleans()), max_size=60),
    k=st.one_of(st.integers(1, 40), st.integers(1, 300), st.integers(1, 1500)),
    solver=st.sampled_from(SOLVERS),
    limits=LIMITS,
    batch_elements=st.sampled_from([1 << 14, 1 << 20, 1 << 40]),  # the first makes rows long
    tensor_cores=st.booleans(),
    stored_half=st.booleans(),
    segment=st.sampled_from([50, SEGMENT]),
)  # fmt: skip


@BY_HYPOTHESIS
@given(PLANS)
def test_any_rows_on_any_device(case):
    for check in CHECKS:
        check(case)


@BY_HYPOTHESIS
@given(PLANS)
def test_a_row_is_solved_alike_in_any_company(case):
    """How depends on the row's own length and kind, never on the other rows."""
    packing = rows_of_every_length()
    everything = plan_half_sweep(packing, case.k, case.solver, case.limits, **case.options)

    def launch_of(plan, place):
        launches = (one for one in plan.launches if one.start <= place < one.stop)
        return next((replace(one, start=0, stop=0) for one in launches), None)

    for span, every_length in zip(case.packing.spans[:2], packing.spans[:2], strict=True):
        for place in range(span.start, span.stop):
            length = min(case.lengths[place], 2 * SEGMENT + 1)
            expected = launch_of(everything, every_length.start + length)
            assert launch_of(case.plan, place) == expected


@EVERY_DEVICE
@EVERY_SOLVER
def test_the_compiled_specialisations_are_all_there_are(solver, device):
    """Those that other tests compile."""
    compiled = specialisations(DEVICES[device]).keys()
    for k in range(1, 5000, 97):
        for tensor_cores in (False, True):
            plan = plan_half_sweep(
                rows_of_every_length(), k, solver, DEVICES[device], tensor_cores=tensor_cores
            )
            for launch in plan.launches:
                macros = tuple(pair for pair in launch.macros if pair[0] != "WARPS")
                assert (launch.kernel, macros) in compiled


def test_solvers_have_the_numbers_of_the_kernels():
    """Of the macro SOLVER, in solve.cuh."""
    assert [type(solver) for solver in SOLVERS] == [Cholesky, ConjugateGradient, NonNegative]


# Devices


@EVERY_DEVICE
@EVERY_SOLVER
def test_largest_systems(solver, device):
    """Long rows leave the chip where their system does not fit, and only there."""
    largest = LARGEST[device][SOLVERS.index(solver)]
    for k in range(1, 301):
        plan = planned(*definite(k, 700, 3 * SEGMENT), k, solver, DEVICES[device]).plan
        assert (plan.rest == ()) == (k <= largest)
        assert bool(plan.launches) == (k <= largest)


@EVERY_SOLVER
def test_all_but_empty_rows_stay_on_large_chips(solver):
    """And those without entries too where they go with rows in dual form."""
    k = LARGEST[90][SOLVERS.index(solver)]
    plan = plan_half_sweep(rows_of_every_length(), k, solver, DEVICES[90])
    assert plan.rest == tuple(
        (span.start, span.start + 1)
        for span in rows_of_every_length().spans[:2]
        if not (isinstance(solver, Cholesky) and span.definite)
    )


@pytest.mark.parametrize(
    ("device", "k", "longest"), [(75, 128, 96), (80, 224, 192), (90, 600, 256)]
)
def test_rows_beyond_the_dual_ladder_are_left(device, k, longest):
    """Not given to the primal form, which is less accurate for them."""
    case = planned(*definite(*range(1, k)), k, Cholesky(), DEVICES[device])
    assert case.plan.rest == ((longest, k - 1),)
    assert case.lengths[longest] == longest + 1


@EVERY_SOLVER
def test_the_last_byte_counts(solver):
    """A block gets exactly what it asks for, or the rows go elsewhere."""
    rows, limits = definite(300), DEVICES[90]
    # A copy of the system is what is given up first; only a factorisation needs one.
    for kept in (True, False) if isinstance(solver, Cholesky) else (False,):
        (launch,) = planned(*rows, 100, solver, limits).plan.launches
        assert launch.kernel == "primal"  # which needs more than split rows do
        assert ("KEPT" in dict(launch.macros)) == kept
        limits = replace(limits, shared_per_block=launch.shared_bytes)
        assert planned(*rows, 100, solver, limits).plan.launches == (launch,)
        limits = replace(limits, shared_per_block=launch.shared_bytes - 1)
    assert planned(*rows, 100, solver, limits).plan == Plan((), ((0, 1),))


# Printing


def test_no_rows():
    plan = planned(*definite(), 64, Cholesky(), DEVICES[90]).plan
    assert plan == Plan((), ())
    assert str(plan) == ""


def test_a_launch_prints_its_numbers():
    launch = Launch(
        kernel="dual_block", macros=(("EDGE", 16), ("TILES", 5)), block=256, shared_bytes=70144,
        chunk=96, start=1230, stop=4567,
    )  # fmt: skip
    words = str(launch).split()
    numbers = {"dual_block", "1230", "4567", "3337", "256", "68.5", "96", "[EDGE=16", "TILES=5]"}
    assert numbers <= set(words)
    assert launch.grid == 3337
    assert Launch("dual_warp", (), 128, 16, rows_per_block=4, start=10, stop=19).grid == 3


def test_a_plan_prints_every_row():
    rows = definite(0, 0, 5, 40, 300, 3 * SEGMENT)
    plan = planned(*rows, 64, Cholesky(), DEVICES[90]).plan
    lines = [line.split() for line in str(plan).splitlines()]
    assert [line[0] for line in lines] == ["split", "primal", "dual_block", *2 * ["dual_warp"]]
    assert [[line[2], line[4]] for line in lines] == [
        ["5", "6"], ["4", "5"], ["3", "4"], ["2", "3"], ["0", "2"],
    ]  # fmt: skip
