"""What the GPU kernels would take, predicted from their own machine code; needs no GPU.

Every kernel of a half-sweep is compiled and disassembled (kernel_sass.py). A loop of the machine
code is known by the ``for`` of the source that it comes from, and how often that turns follows from
the row's length (``LOOPS``). Two times of a row follow: what its instructions and bytes take of the
busiest pipe of a multiprocessor, and how long one warp waits for its own instructions, one after
another. The first is shared by all resident blocks, the second passes for all at once, so a row
costs the larger of the first and the second over the number of resident blocks. Rows are spread
over all multiprocessors; nothing is faster than the device's memory, nor than its longest row.

Beside it stand the floor, the least arithmetic and bytes that an exact method has (direct: the
cheaper of dual and primal form; any: or conjugate gradients that need ``STEPS`` passes), and the
kernel of ``implicit``, one block for each row, bound by its longest row.

    python benchmarks/gpu_model.py [--shapes ml20m lastfm] [--factors 64 128 256] [--tensor-cores]
        [--divisor 1] [--rows] [--nvrtc 13.0]

Latencies and rates are published ones of Hopper, so expect errors of a third. What gpu_suite.py has
measured (benchmarks/results/gpu-*.json) is printed beside.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_floor import Work
from gpu_sections import PEER_PATH
from gpu_shapes import SHAPES
from kernel_resources import occupancy
from kernel_sass import (
    BARRIER_CYCLES,
    LATENCY,
    LDG_FROM_MEMORY,
    Instruction,
    Loop,
    cycles_alone,
    find_disassembler,
    functions_of,
    loops_of,
    nvrtc,
    pipe_cycles,
    source_line,
)

from gpu_als.backends.cupy.launch import Launch, plan_half_sweep, stride_of
from gpu_als.core.packing import pack_rows
from gpu_als.core.solvers import Cholesky

Array = np.ndarray


@dataclass(frozen=True)
class Device:
    """Rates of a device: by default of an H100 or H200."""

    architecture: int = 90
    multiprocessors: int = 132
    clock: float = 1.9e9
    memory: float = 4.3e12  # bytes/s
    l2: int = 50 << 20  # bytes
    launch: float = 4e-6  # s of the host for each kernel

    @property
    def flops(self) -> float:
        """Peak in float32."""
        return 256 * self.multiprocessors * self.clock


STEPS = 8
"""Of conjugate gradients, in the floor: what certified solves of implicit feedback take."""

# How often loops turn -------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What trip counts depend on; ``n`` is an array of row lengths."""

    n: Array
    k: int
    threads: int
    entries: int  # that a dual kernel has room for
    size: int  # of the system
    chunk: int
    tile_rows: int  # entries that are staged at a time
    edge: int  # EDGE

    @property
    def stride(self) -> int:
        """Length of a row of factors."""
        return stride_of(self.k)


def _up(a: Any, b: Any) -> Any:
    """Return quotients, rounded up."""
    return -(-np.asarray(a) // b)


def _lanes(quads: int) -> int:
    return 32 if quads > 16 else 16 if quads > 8 else 8 if quads > 4 else 4


def _panels(s: Size) -> list[int]:
    return list(range(s.size // 32))


def _update_turns(s: Size) -> list[int]:
    """Return, for every panel, how often update_panel's outer loop turns."""
    return [0 if p == 0 else int(_up(s.size + 1 - 32 * p, s.threads // 2)) for p in _panels(s)]


def _check(s: Size) -> Array:
    quads = s.size // 4
    group = 32 if quads >= 32 else 16 if quads > 8 else 8
    at_once = s.threads // group * 4
    return _up(s.n, at_once)


Trips = Callable[[Size], Any]
LOOPS: dict[str, Trips | tuple[Trips, ...]] = {
    # half_sweep.cuh
    "for (int c = thread; c < width": lambda s: _up(s.stride, s.threads),
    # gram.cuh
    "for (int left = count; left > 0": lambda s: _up(s.n, s.threads),
    "for (int done = 0; done < here": lambda s: _up(s.n, s.tile_rows) / _up(s.n, s.threads),
    "for (int i = 0; i < Shape::kTileRows": lambda s: s.tile_rows,
    "for (int i = 0; i < kRows": lambda s: s.tile_rows,
    # cholesky.cuh
    "for (int p = 0; p < matrix.size / kPanel": (lambda s: s.size // 32, lambda s: 0),
    "for (int top = ty; top < rows": lambda s: np.mean(_update_turns(s)),
    "for (int q = 0; q < p": lambda s: (
        np.dot(_update_turns(s), _panels(s)) / max(1, sum(_update_turns(s)))
    ),
    "for (int l = 0; l < kPanel": lambda s: 8,
    "for (int p = matrix.size / kPanel - 1": (lambda s: s.size // 32, lambda s: 0),
    "for (int r = first + kPanel + warp": lambda s: np.mean(
        [_up(s.size - 32 * (p + 1), s.threads // 32) for p in _panels(s)]
    ),
    # solve.cuh; there is no shared base in frames of implicit feedback, nor in explicit ones
    "for (int e = threadIdx.x; e < problem.k * problem.k": lambda s: 0,
    "for (int l = 0; l < problem.k": lambda s: 0,
    "for (int c = threadIdx.x; c < SIZE; c += THREADS) v.z[c] -=": lambda s: 0,
    "for (int c = threadIdx.x; c < SIZE": lambda s: _up(s.size, s.threads),
    "for (int c = threadIdx.x; c < problem.stride": lambda s: _up(s.stride, s.threads),
    # check.cuh, primal.cu
    "for (int base = group": _check,
    "for (int e = 4 * threadIdx.x": lambda s: _up(
        36 * (s.size // 32) * (s.size // 2 + 17), 4 * s.threads
    ),
    "for (; c + 3 <= r": lambda s: s.size // 8,
    "for (; c <= r": lambda s: 0,
    "for (; c < SIZE": lambda s: s.size // 2,
    # dual_block.cu
    "for (int i = tid; i < SIZE": lambda s: _up(s.size, s.threads),
    "for (int c = tid; c < stride": lambda s: _up(s.stride, s.threads),
    "for (int turn = 0; turn < chunks": lambda s: _up(s.stride, s.chunk),
    "for (int first = threadIdx.x / lanes": (
        lambda s: _up(s.entries, 4 * s.threads // _lanes(s.chunk // 4)),
        # Passes find their first chunk there.
        lambda s: (
            _up(s.entries, 4 * s.threads // _lanes(s.chunk // 4)) * (1 - 1 / _up(s.stride, s.chunk))
        ),
    ),
    "for (int c = own; c < chunk.width": lambda s: _up(s.chunk, 4 * _lanes(s.chunk // 4)),
    "for (int c = 0; c < chunk.width; c += 4) {": lambda s: _up(s.chunk, 4),
    "for (int c = 0; c < chunk.width; c += 4)": (lambda s: 0, lambda s: _up(s.chunk, 4)),
    "for (int c = 4 * lane; c < chunk.width": lambda s: _up(s.chunk, 128),
    "for (int i = warp; i < n": lambda s: _up(s.n, s.threads // 32),
    "for (int c = tid; c < chunk.width": lambda s: _up(s.chunk, s.threads),
    "for (int e = tid; e < (SIZE - M)": lambda s: _up((s.size - s.entries) * s.size, s.threads),
    # dual_warp.cu
    "for (int base = 0; base < N": lambda s: _up(s.entries, 4 * 32 // _lanes(s.stride // 4)),
    "for (int c = 4 * (lane % lanes)": lambda s: _up(s.stride, 4 * _lanes(s.stride // 4)),
    "for (int c = lane; c < stride; c += 32) z[c]": lambda s: 0,
    "for (int c = 0; c < stride; c += 4) t -=": lambda s: 0,
    "for (int c = 0; c < stride": lambda s: s.stride // 4,
    "for (int c = 4 * lane; c < stride": lambda s: _up(s.stride, 128),
    "for (int i = 0; i < n": lambda s: s.n,
    "for (int c = lane; c < stride": lambda s: _up(s.stride, 32),
    # split.cu
    "for (int e = threadIdx.x; e <= PANELS": lambda s: _up(
        36 * (s.size // 32) * (s.size // 2 + 17), s.threads
    ),
    "for (int e = threadIdx.x; e < PANELS": lambda s: _up(
        36 * (s.size // 32) * (s.size // 2 + 17), s.threads
    ),
    "for (int64 s = 0": lambda s: _up(s.n, 4096),
}
"""Beginnings of lines of the source, the longer before the shorter; where several loops of a
function come from one line, the trips of one after the other (the last for all that follow)."""

# Multiply-adds of a lane in one turn of the source, where loops are unrolled.
MULTIPLIES: dict[str, Trips] = {
    "for (int i = 0; i < Shape::kTileRows": lambda s: 4 * _pairs(s.size // (2 * s.edge)),
    "for (int i = 0; i < kRows": lambda s: 1,
    "for (; c + 3 <= r": lambda s: 4,
    "for (; c < SIZE": lambda s: 1,
    "for (int c = 0; c < chunk.width; c += 4) {": lambda s: 4 * _pairs(s.entries // s.edge),
    "for (int c = 0; c < chunk.width": lambda s: 4,
    "for (int i = warp; i < n": lambda s: 4,
    "for (int l = 0; l < kPanel": lambda s: 64,
    "for (int r = first + kPanel + warp": lambda s: 1,
    "for (int i = 0; i < n; ++i) sum": lambda s: 4,
    "for (int i = 0; i < n": lambda s: 2,
    "for (int c = 0; c < stride; c += 4) {": lambda s: 8 * _pairs(s.entries // 8),
    "for (int c = 0; c < stride": lambda s: 4,
}


def _pairs(n: int) -> int:
    return n * (n + 1) // 2


# What is read only where it is there, and is not in sweeps of implicit feedback.
ABSENT = re.compile(r"\(problem\.(b0|base|offset)\)")
UNREFINED = re.compile(f"{ABSENT.pattern}|Check::run|complete_misfit")
"""Where systems are kept, only rows that are refined pass their entries twice."""

# Loops in which only some warps take part: their share of the work.
BUSY: dict[str, Trips] = {
    "for (int p = 0; p < matrix.size / kPanel": lambda s: np.mean(
        [min(1, (s.size // 32 - p) / (s.threads // 32)) for p in _panels(s)]
    ),
    "for (int p = matrix.size / kPanel - 1": lambda s: 32 / s.threads,
}


def _lookup(text: str, table: dict[str, Any]) -> Any:
    return next((value for start, value in table.items() if text.startswith(start)), None)


@dataclass
class Cost:
    """What one row takes of its multiprocessor, in cycles; arrays over row lengths.

    ``pipes`` are shared by all resident warps, ``alone`` is how long one block takes by itself.
    """

    pipes: defaultdict[str, Any]
    alone: Any


def cost_of(
    code: Sequence[Instruction], s: Size, warps: int, ldg: float, absent: re.Pattern[str]
) -> Cost:
    """Return the cost of one row of each length, solved by ``warps`` warps.

    ``ldg`` is the latency of a load of factors; what comes from lines like ``absent`` never runs.
    """
    total = Cost(defaultdict(float), 0.0)
    seen: Counter[str] = Counter()

    def add(loop: Loop, times: Any, text: str) -> None:
        if np.all(times == 0):
            return
        own = [
            each
            for each in loop.own
            if not any(absent.search(source_line(line)) for line in each.lines)
        ]
        if text == "refinement":  # a row that is not refined skips its solutions
            own = [each for each in own if each.lines[0][0] != "cholesky.cuh"]
        factors = any(each.opcode == "LDG" and each.bytes == 16 for each in own)
        share = (_lookup(text, BUSY) or (lambda s: 1.0))(s)
        used = pipe_cycles(own)
        for pipe, cycles in used.items():
            total.pipes[pipe] = total.pipes[pipe] + times * cycles * share * warps
        waits = cycles_alone(own, ldg if factors else LDG_FROM_MEMORY)
        total.alone = total.alone + times * np.maximum(
            waits, max(used.values(), default=0.0) * share * warps
        )
        groups: dict[Any, list[Loop]] = {}
        for inner in loop.inner:
            place = inner.own[-1].lines[0]
            # What holds a loop of its own line goes round again where a row is refined.
            wraps = any(each.own[-1].lines[0] == place for each in inner.inner)
            groups.setdefault((place, inner.own[0].address if wraps else None), []).append(inner)
        for (place, wraps), loops in groups.items():
            name = source_line(place)
            found = _lookup(name, LOOPS)
            if wraps is not None or not name.startswith("for"):
                add(loops[0], times, "refinement")
                continue
            if found is None:
                raise LookupError(f"how often does this loop turn: {name}")
            if isinstance(found, tuple):
                found = found[min(seen[name], len(found) - 1)]
            seen[name] += 1
            turns = found(s)
            # One of them is unrolled, the others take what is left over.
            main = max(loops, key=lambda each: len(each.own))
            least = min(loops, key=lambda each: len(each.own))
            asked = _lookup(name, MULTIPLIES)
            multiplies = asked(s) if asked else _weight(least)
            copies = max(1, round(_weight(main) / max(1, multiplies)))
            if np.max(turns) < copies and main is not least:
                main, copies = least, max(1, round(_weight(least) / max(1, multiplies)))
            add(main, times * turns / copies, name)

    add(loops_of(code), np.ones(len(s.n)), "")
    return total


def _weight(loop: Loop) -> float:
    """Return what says how often a loop was unrolled."""
    memory = sum(each.opcode in ("LDG", "STG", "LDS", "STS") for each in loop.own)
    fused = sum(each.opcode == "FFMA" for each in loop.own)
    return fused or memory or len(loop.own)


# Half-sweeps ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """One launch: its rows and entries, ms if it ran by itself, and the floor of its rows."""

    launch: Launch
    rows: int
    entries: int
    ms: float
    alone_ms: float  # of its longest row
    floor_ms: float
    limit: str


def predict(
    lengths: Array, n_fixed: int, k: int, device: Device, *, tensor_cores: bool, version: Any
) -> list[Prediction]:
    """Predict each launch of the half-sweep over rows of these lengths."""
    limits = nvrtc.DEVICES[device.architecture]
    packing = pack_rows(lengths.astype(np.int64), k, 1 << 40)
    plan = plan_half_sweep(packing, k, Cholesky(), limits, tensor_cores=tensor_cores)
    missing = max(0.0, 1 - device.l2 / (4 * k * n_fixed))
    ldg = LATENCY["LDG"] + missing * (LDG_FROM_MEMORY - LATENCY["LDG"])
    found = []
    for launch in plan.launches:
        n, counts = np.unique(
            lengths[packing.places[launch.start : launch.stop]], return_counts=True
        )
        build = nvrtc.build(launch, device.architecture, version)
        busy, alone, pipes = np.zeros(len(n)), np.zeros(len(n)), defaultdict(float)
        for name, code in functions_of(launch, device.architecture, version).items():
            shared = dict(launch.functions).get(name, launch.shared_bytes)
            fits = occupancy(launch, build.functions[name].registers, shared, limits)
            blocks = min(fits[f"by_{what}"] for what in ("registers", "shared", "threads"))
            macros = dict(launch.macros)
            warps = launch.block // 32 // launch.rows_per_block
            edge = macros.get("EDGE", 8)
            entries = edge * macros.get("TILES", 0)
            size = 2 * edge * macros.get("UNITS", 0) or 32 * int(_up(entries, 32))
            parts = _up(n, 4096) if name == "split_gram" else 1
            tile_rows = 8 if "TENSOR_CORES" in macros or size > 128 else 16
            s = Size(
                _up(n, parts) if name != "split_solve" else n, k,
                32 * warps, entries, size, launch.chunk or 0, tile_rows, edge,
            )  # fmt: skip
            cost = cost_of(
                code, s, warps, ldg, UNREFINED if "KEPT" in macros or launch.functions else ABSENT
            )
            most = np.max([np.broadcast_to(each, len(n)) for each in cost.pipes.values()], axis=0)
            row = np.maximum(most, cost.alone / (blocks * launch.rows_per_block)) * parts
            busy += row
            alone += cost.alone
            for pipe, cycles in cost.pipes.items():
                pipes[pipe] += float((np.broadcast_to(cycles * parts, len(n)) * counts).sum())
            pipes["waiting"] += float(
                (cost.alone / blocks / launch.rows_per_block * parts * counts).sum()
            )
        work = Work.of(n.repeat(counts), k)
        found.append(
            Prediction(
                launch, int(counts.sum()), int((n * counts).sum()),
                1e3 * float((busy * counts).sum()) / device.multiprocessors / device.clock,
                1e3 * float(alone.max()) / device.clock,
                1e3 * work.flops / device.flops,
                max(pipes, key=lambda pipe: pipes[pipe]),
            )
        )  # fmt: skip
    return found


def floors(lengths: Array, k: int, device: Device) -> dict[str, float]:
    """Return ms that memory and the least arithmetic take, of direct ways and of all."""
    n = lengths.astype(np.float64)
    direct = np.minimum(n**2 * k + n**3 / 3, n * k**2 + k**3 / 3)
    iterative = (STEPS + 1) * 4 * n * k
    memory = 1e3 * Work.of(lengths, k).bytes / device.memory
    return {
        "memory": memory,
        "direct": 1e3 * float(direct.sum()) / device.flops,
        "any": 1e3 * float(np.minimum(direct, iterative).sum()) / device.flops,
    }


def half_sweep_ms(found: Sequence[Prediction], memory_ms: float, device: Device) -> float:
    """Return what launches that run side by side take together."""
    together = sum(each.ms for each in found)
    longest = max((each.alone_ms for each in found), default=0.0)
    return max(together, memory_ms, longest) + 1e3 * device.launch * len(found)


def implicit_ms(lengths: Sequence[Array], k: int, device: Device) -> float:
    """Return what an iteration by three steps of ``implicit`` 0.7.3 takes.

    It has a block of k threads for each row, which passes the row's entries one after the other,
    once for the residual and once for each step. Each of them waits for its index, its factors, two
    sums over a warp and three barriers, so the longest row of each side is the time.
    """
    warps = -(-k // 32)
    entry = 2 * LATENCY["LDG"] + 2 * 5 * LATENCY["SHFL"] + 3 * BARRIER_CYCLES + 40 * warps
    return 1e3 * 4 * entry * sum(int(n.max()) for n in lengths) / device.clock


def measured(folder: Path) -> dict[tuple[str, int, str], float]:
    """Return what gpu_suite.py measured: ms by shape, k and path, of the latest results."""
    found = {}
    for path in sorted(folder.glob("gpu-*.json")):
        for section in json.loads(path.read_text())["sections"].values():
            for row in section["rows"]:
                if row.get("objective") == "implicit" and {"path", "ms"} <= row.keys():
                    found[row["shape"], row["k"], row["path"]] = row["ms"]
    return found


RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["ml20m"])
    parser.add_argument("--factors", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--tensor-cores", action="store_true", help="3xTF32")
    parser.add_argument("--divisor", type=int, default=1, help="draw smaller matrices")
    parser.add_argument("--rows", action="store_true", help="a line for each launch")
    versions = {"{}.{}".format(*version): version for version in nvrtc.versions()}
    parser.add_argument("--nvrtc", choices=versions, default=[*versions][-1] if versions else None)
    arguments = parser.parse_args()
    if not versions or find_disassembler() is None:
        parser.exit(
            message="needs NVRTC and nvdisasm: pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm\n"
        )
    device, known = Device(), measured(RESULTS)
    print(
        "predicted ms of an iteration; measured ones at the right\n"
        "shape      k     ours  floor: direct        any  implicit |     ours implicit"
    )
    for shape in arguments.shapes:
        matrix = SHAPES[shape].scaled(arguments.divisor).draw()
        for k in arguments.factors:
            total = Counter[str]()
            sides = [np.diff(rows.indptr) for rows in matrix.sides]
            for side, rows, lengths in zip(("users", "items"), matrix.sides, sides, strict=True):
                found = predict(
                    lengths, rows.n_fixed, k, device,
                    tensor_cores=arguments.tensor_cores, version=versions[arguments.nvrtc],
                )  # fmt: skip
                floor = floors(lengths, k, device)
                total["ours"] += half_sweep_ms(found, floor["memory"], device)
                for way in ("direct", "any"):
                    total[way] += max(floor["memory"], floor[way])
                if arguments.rows:
                    print_launches(f"{shape}, {side}, k = {k}", found)
            times = known.get((shape, k, "kernels")), known.get((shape, k, PEER_PATH))
            print(
                f"{shape:7} {k:4} {total['ours']:8.1f} {total['direct']:13.1f} "
                f"{total['any']:10.1f} {implicit_ms(sides, k, device):9.0f} | "
                + " ".join("       -" if ms is None else f"{ms:8.1f}" for ms in times),
                flush=True,
            )


def print_launches(title: str, found: Sequence[Prediction]) -> None:
    """Print a line for each launch of a half-sweep."""
    print(f"\n{title}")
    for each in found:
        macros = " ".join(f"{name}={value}" for name, value in each.launch.macros)
        print(
            f"{each.launch.kernel:10} {each.rows:8} rows {each.entries:9} entries {each.ms:7.2f} "
            f"ms, {each.floor_ms / each.ms:4.0%} of the floor, by {each.limit:8} longest row "
            f"{each.alone_ms:6.3f} ms  {macros}"
        )


if __name__ == "__main__":
    main()
