"""The machine that kernels are tested with on the CPU, held against CUDA's definitions."""

from __future__ import annotations

import textwrap
from importlib import resources

import numpy as np
import nvrtc
import ptx
import pytest
from ptx import MachineError
from ptx.decode import DecodeError

pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))

LANES = np.arange(32)
ORDERS = ["forward", "reverse", "shuffle:5"]
MEMORY = (resources.files("gpu_als.backends.cupy") / "kernels" / "memory.cuh").read_text("utf-8")
HEAD = f'#line 1 "memory.cuh"\n{MEMORY.replace("#pragma once", "")}\n#line 1 "kernel.cu"\n'


def load(body: str, parameters: str = "float* out") -> ptx.Kernel:
    """Compile a kernel whose body begins on line 2."""
    source = f'extern "C" __global__ void kernel({parameters}) {{\n{textwrap.dedent(body)}\n}}\n'
    return ptx.load(HEAD + source, "kernel")


def run(body: str, *, threads: int = 32, shared: int = 0, order: str = "forward"):
    """Run one block whose threads may each set ``out[threadIdx.x]``; return ``out``."""
    out = np.zeros(threads, np.float32)
    kernel = load(body)
    kernel.order = order
    kernel.launch((1,), (threads,), (out,), shared)
    return out


# Warps


def by_width(source, width):
    """Replace sources outside of the own segment by the own lane, as CUDA defines it."""
    segment = LANES & -width
    return np.where((source >= segment) & (source < segment + width), source, LANES)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles(width, order):
    segment = LANES & -width
    expected = {
        f"__shfl_sync(~0u, v, 5, {width})": segment + 5,
        f"__shfl_sync(~0u, v, lane + 3, {width})": segment + (LANES + 3) % width,
        f"__shfl_up_sync(~0u, v, 3, {width})": by_width(LANES - 3, width),
        f"__shfl_down_sync(~0u, v, 3, {width})": by_width(LANES + 3, width),
        f"__shfl_xor_sync(~0u, v, 5, {width})": LANES ^ 5,
    }
    kinds = ("int", "float", "long long", "double")
    body = "int lane = threadIdx.x;"
    for i, kind in enumerate(kinds):
        body += f"{{ {kind} v = 100 + lane;"
        for j, call in enumerate(expected):
            body += f"out[{32 * (i * len(expected) + j)} + lane] = {call};"
        body += "}\n"
    out = np.zeros((len(kinds), len(expected), 32), np.float32)
    kernel = load(body)
    kernel.order = order
    kernel.launch((1,), (32,), (out,))
    for row in out:
        np.testing.assert_array_equal(row, 100 + np.array(list(expected.values())))


def test_xor_shuffle_reaches_back_but_not_on():
    out = run("out[threadIdx.x] = __shfl_xor_sync(~0u, (int)threadIdx.x, 8, 8);")
    partner = LANES ^ 8
    np.testing.assert_array_equal(out, np.where(partner < (LANES & -8) + 8, partner, LANES))


@pytest.mark.parametrize("true_lanes", [0, 1, 0x80000000, 0x12345678, 0xFFFFFFFF])
def test_votes(true_lanes):
    kernel = load(
        """
        int lane = threadIdx.x, v = true_lanes >> lane & 1;
        unsigned ballot = __ballot_sync(~0u, v);
        int any = __any_sync(~0u, v), all = __all_sync(~0u, v);
        out[lane] = (ballot == true_lanes) + 2 * any + 4 * all;
        """,
        "float* out, unsigned true_lanes",
    )
    out = np.zeros(32, np.float32)
    kernel.launch((1,), (32,), (out, np.uint32(true_lanes)))
    expected = 1 + 2 * (true_lanes != 0) + 4 * (true_lanes == 0xFFFFFFFF)
    np.testing.assert_array_equal(out, expected)


def collatz(n: int) -> int:
    """Count the steps to 1, as every lane of the kernel below does for itself."""
    steps = 0
    while n != 1:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    return steps


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_part_and_meet(order):
    """Loops of different length, a branch in each turn, an early exit, then all lanes together."""
    body = """
        int n = threadIdx.x + 1, steps = 0;
        if (threadIdx.x >= 32) return;
        for (; n != 1; ++steps) {
            if (n % 2) n = 3 * n + 1;
            else n /= 2;
            if (steps == 50) break;
        }
        int most = steps;
        for (int lanes = 16; lanes; lanes /= 2)
            most = max(most, __shfl_xor_sync(~0u, most, lanes));
        out[threadIdx.x] = 1000 * most + steps;
    """
    steps = np.minimum([collatz(n + 1) for n in range(32)], 50)
    out = run(body, threads=64, order=order)
    np.testing.assert_array_equal(out[:32], 1000 * steps.max() + steps)
    np.testing.assert_array_equal(out[32:], 0)


def test_many_values_are_kept():
    """More than share a register: what waits for others stays as it is."""
    sums = "".join(f"float s{i} = in[{i}] + lane; " for i in range(60))
    loop = "for (int i = 0; i < lane; ++i) { " + "".join(
        f"s{i} = fmaf(s{i}, 0.5f, s{(i + 7) % 60}); " for i in range(60)
    )
    stores = "}" + "".join(f"out[{32 * i} + lane] = s{i}; " for i in range(60))
    values = np.random.default_rng(3).standard_normal(60).astype(np.float32)
    out = np.zeros((60, 32), np.float32)
    kernel = load(f"int lane = threadIdx.x;\n{sums}\n{loop}{stores}", "float* out, const float* in")
    kernel.launch((1,), (32,), (out, values))
    for lane in range(32):
        s = [np.float64(np.float32(value + np.float32(lane))) for value in values]
        for _ in range(lane):
            for i in range(60):
                s[i] = np.float64(np.float32(s[i] * 0.5 + s[(i + 7) % 60]))
        np.testing.assert_allclose(out[:, lane], s, rtol=1e-6)


# The block


@pytest.mark.parametrize("order", ORDERS)
def test_reduction_over_warps_and_block(order):
    body = """
        SHARED_MEMORY(sums);
        float v = threadIdx.x;
        for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
        __syncthreads();
        v = 0;
        for (int warp = 0; warp < blockDim.x / 32; ++warp) v += sums[warp];
        out[threadIdx.x] = v;
    """
    out = run(body, threads=256, shared=32, order=order)
    np.testing.assert_array_equal(out, 255 * 128)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("true_threads", [0, 1, 99, 100])
def test_barriers_that_vote(true_threads, order):
    body = """
        int v = 2 * (threadIdx.x < true_threads);
        int count = __syncthreads_count(v), any = __syncthreads_or(v), all = __syncthreads_and(v);
        out[threadIdx.x] = count + 1000 * any + 2000 * all;
    """
    kernel, out = load(body, "float* out, int true_threads"), np.zeros(100, np.float32)
    kernel.order = order
    kernel.launch((1,), (100,), (out, np.int32(true_threads)))
    expected = true_threads + 1000 * (true_threads > 0) + 2000 * (true_threads == 100)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_indices(order):
    grid, block = (3, 2, 4), (5, 3, 2)
    body = """
        long long at = 0;
        at = at * gridDim.z + blockIdx.z;
        at = at * gridDim.y + blockIdx.y;
        at = at * gridDim.x + blockIdx.x;
        at = at * blockDim.z + threadIdx.z;
        at = at * blockDim.y + threadIdx.y;
        at = at * blockDim.x + threadIdx.x;
        out[at] += at;
    """
    out = np.zeros(24 * 30, np.float32)
    kernel = load(body)
    kernel.order = order
    kernel.launch(grid, block, (out,))
    np.testing.assert_array_equal(out, np.arange(len(out)))


@pytest.mark.parametrize(
    ("body", "forward", "reverse"),
    [
        ("p[threadIdx.x / 64] = threadIdx.x;", "thread (1, 0, 0),", "thread (113, 0, 0),"),
        ("if (threadIdx.x % 32 < 1) p[0] = threadIdx.x;", "thread (32, 0, 0)", "thread (64, 0, 0)"),
        ("if (threadIdx.x == 0) out[0] = blockIdx.x + 1;", "block (1, 0, 0),", "block (2, 0, 0),"),
    ],
    ids=["lanes", "warps", "blocks"],
)  # fmt: skip
def test_orders(body, forward, reverse):
    """What comes second, and so makes a race of it."""
    kernel, out = load(f"SHARED_MEMORY(p); {body}"), np.zeros(1, np.float32)
    for order, expected in (("forward", forward), ("reverse", reverse)):
        kernel.order = order
        with pytest.raises(MachineError, match="race") as caught:
            kernel.launch((4,), (128,), (out,), 64)
        assert expected in str(caught.value)


# What kernels must not do


@pytest.mark.parametrize(
    "body",
    [
        "out[threadIdx.x] = p[threadIdx.x];",
        "out[threadIdx.x] = 2 * p[threadIdx.x] + 1;",
        "if (p[threadIdx.x] < 3) out[threadIdx.x] = 1;",
        "out[threadIdx.x] = fmaxf(p[threadIdx.x], 3);",
        "out[shared_as<int>(p)[threadIdx.x]] = 1;",
        "p[threadIdx.x] = 1; __syncthreads(); out[threadIdx.x] = p[threadIdx.x + 1];",
        "float4 v = load4(p + 4 * threadIdx.x); out[threadIdx.x] = v.x + v.y + v.z + v.w;",
    ],
)
def test_unwritten_shared_memory(body):
    with pytest.raises(MachineError, match=r"nobody has written|outside of all arrays"):
        run(f"SHARED_MEMORY(p);\n{body}", shared=1024)


def test_unwritten_shared_memory_may_pass_by():
    """Where nothing follows from it. Every block begins without what the one before has written."""
    body = """
        SHARED_MEMORY(p);
        p[2 * threadIdx.x] = threadIdx.x;
        __syncthreads();
        float2 both = load2(p + 2 * threadIdx.x);
        p[2 * threadIdx.x + 64] = 3 * both.y;
        out[threadIdx.x] = both.x;
    """
    np.testing.assert_array_equal(run(body, shared=1024), LANES)
    kernel, out = load(f"{body}\nif (blockIdx.x) out[0] = p[1];"), np.zeros(32, np.float32)
    with pytest.raises(MachineError, match=r"block \(1, 0, 0\).*(nobody has written|race)"):
        kernel.launch((2,), (32,), (out,), 1024)


WRONG = {
    "past the end of shared memory": (
        "p[threadIdx.x + (threadIdx.x == 63)] = 0;",
        r"thread \(63, 0, 0\), kernel.cu:3: out-of-bounds access of 4 bytes of shared memory at "
        r"byte 256",
    ),
    "before shared memory": (
        "p[int(threadIdx.x) - 1] = 0;", r"thread \(0, 0, 0\), .*out-of-bounds .* at byte -?\d+"
    ),
    "a misaligned vector in shared memory": (
        "store4(p + 1, make_float4(0, 0, 0, 0));",
        r"kernel.cu:3: misaligned access of 16 bytes of shared memory at byte 4",
    ),
    "past the end of an array": (
        "out[threadIdx.x + 1] = 0;",
        r"thread \(63, 0, 0\), kernel.cu:3: reaches 4 bytes of global memory at 0x\w+, outside of "
        "all arrays",
    ),
    "before an array": ("out[int(threadIdx.x) - 1] = 0;", r"thread \(0, 0, 0\), .*outside of all"),
    "far from an array": ("out[1ll << 33] = 0;", "outside of all arrays"),
    "a misaligned vector": (
        "store4(out + 2 * threadIdx.x, make_float4(0, 0, 0, 0));", "misaligned access of 16 bytes"
    ),
    "a thread has returned": (
        "if (threadIdx.x == 40) return;\n__syncthreads();\nout[0] = 0;",
        r"kernel.cu:4: divergent barrier: waits here, but thread 40 has left",
    ),
    "a thread returns while others wait": (
        "if (threadIdx.x < 63) __syncthreads();",
        r"kernel.cu:3: divergent barrier: waits here, but thread 63 has left",
    ),
    "two call sites": (
        "if (threadIdx.x < 32) {\np[0] = 1;\n__syncthreads();\n} else {\n__syncthreads();\n"
        "p[1] = 2;\n}",
        r"kernel.cu:[57]: divergent barrier: waits here, but thread \d+ waits at kernel.cu:[57]",
    ),
    "two kinds of barriers": (
        "if (threadIdx.x < 32) __syncthreads(); else out[0] = __syncthreads_or(threadIdx.x);",
        "divergent barrier",
    ),
    "half a warp": (
        "if (threadIdx.x < 16) __syncwarp(); else return;", "a mask of lanes 0xffffffff where"
    ),
    "half a warp at the barrier": (
        "if (threadIdx.x < 16) {\n__syncwarp();\n}\nelse {\n__syncthreads();\np[0] = 1; }",
        r"divergent warp operation: waits here, but lane \d+ waits at kernel.cu:[47]",
    ),
    "two warp operations": (
        "if (threadIdx.x % 2) __syncwarp(); else out[threadIdx.x] = __any_sync(~0u, out[0] > 1);",
        r"divergent warp operation",
    ),
    "a part of a warp": (
        "if (threadIdx.x % 32 < 16) __syncwarp(0xffffu);\n__syncwarp();",
        r"divergent warp operation: waits here, but lane \d+ waits at kernel.cu:[34]",
    ),
    "other lanes than there are": (
        "if (threadIdx.x % 32 >= 20) return; out[threadIdx.x] = __shfl_sync(~0u, 1.0f, 3);",
        "a mask of lanes 0xffffffff where there are 0xfffff",
    ),
    "a lane that has left": (
        "if (threadIdx.x % 32 >= 20) return; "
        "out[threadIdx.x] = __shfl_sync(0xfffffu, float(threadIdx.x), 25);",
        "reads lane 25, which has left",
    ),
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS[:2])
@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_place(case, order):
    body, match = WRONG[case]
    kernel, out = load(f"SHARED_MEMORY(p);\n{body}"), np.zeros(64, np.float32)
    kernel.order = order
    with pytest.raises(MachineError, match=r"kernel kernel, block \(0, 0, 0\), .*" + match):
        kernel.launch((1,), (64,), (out,), 256)


def test_arrays_that_follow_one_another_are_two():
    both = np.zeros(64, np.float32)
    kernel = load("out[threadIdx.x + n] = 1;", "float* out, float* other, int n")
    kernel.launch((1,), (32,), (both[:32], both[32:], np.int32(32)))
    kernel.launch((1,), (32,), (both[:32], both[:0], np.int32(0)))
    with pytest.raises(MachineError, match="outside of all arrays"):
        kernel.launch((1,), (32,), (both[:32], both[:0], np.int32(1)))
    kernel.arrays = {"other": both[32:]}
    kernel.launch((1,), (32,), (both[:32], both[:0], np.int32(32)))
    assert both.all()


def test_a_warp_that_is_not_full():
    run("__syncwarp(0xfffffu);", threads=20)
    with pytest.raises(MachineError, match="a mask of lanes 0xffffffff where there are 0xfffff"):
        run("__syncwarp();", threads=20)


def test_a_kernel_works_after_it_has_failed():
    kernel = load("if (n && threadIdx.x) return; __syncthreads(); out[threadIdx.x] = 2;",
                  "float* out, int n")  # fmt: skip
    out = np.zeros(64, np.float32)
    for _ in range(3):
        with pytest.raises(MachineError, match="divergent"):
            kernel.launch((1,), (64,), (out, np.int32(1)))
    kernel.launch((1,), (64,), (out, np.int32(0)))
    np.testing.assert_array_equal(out, 2)


def test_more_than_48_kib_must_be_allowed():
    kernel = load("SHARED_MEMORY(values); values[threadIdx.x] = 0;")
    out = np.zeros(1, np.float32)
    with pytest.raises(MachineError, match="65536 bytes of shared memory, 49152 allowed"):
        kernel.launch((1,), (32,), (out,), 65536)
    kernel.max_dynamic_shared_size_bytes = 65536
    kernel.launch((1,), (32,), (out,), 65536)
    with pytest.raises(MachineError, match="1000000 bytes"):
        kernel.max_dynamic_shared_size_bytes = 1000000


# Races: two accesses, and what there has to be between them

RACES = {
    "read after write": ("p[tid] = tid", "out[tid] = p[tid ^ {partner}]", True),
    "write after read": ("p[tid] = 1; __syncthreads(); out[tid] = p[tid ^ {partner}]",
                         "p[tid] = tid + 2", True),
    "write after write": ("p[tid] = tid", "p[tid ^ {partner}] = tid", True),
    "read by several": ("p[tid] = 2; __syncthreads(); out[tid] = p[tid & -2 * {partner}]",
                        "if (tid % (2 * {partner}) == 0) p[tid] = 1", True),
    "vectors": ("if (tid % 4 == 0) store4(p + tid, make_float4(1, 2, 3, 4))",
                "out[tid] = p[tid ^ {partner}]", True),
    "the same number": ("p[tid] = 1", "p[tid ^ {partner}] = 1", False),
    "only reads": ("p[tid] = 1; __syncthreads(); float v = p[tid]",
                   "out[tid] = v + p[tid ^ {partner}]", False),
    "own": ("p[tid] = tid", "p[tid] += out[tid] + {partner}", False),
}  # fmt: skip


@pytest.mark.parametrize("memory", ["shared", "global"])
@pytest.mark.parametrize("partner", [8, 32], ids=["lanes", "warps"])
@pytest.mark.parametrize("case", RACES)
def test_races(case, partner, memory):
    first, second, races = (
        text.format(partner=partner) if isinstance(text, str) else text for text in RACES[case]
    )
    for barrier in ("", "__syncwarp()", "__syncthreads()"):
        where = "SHARED_MEMORY(p)" if memory == "shared" else "float* p = in"
        body = f"{where}; int tid = threadIdx.x;\n{first};\n{barrier};\n{second};"
        kernel = load(body, "float* out, float* in")
        enough = barrier == "__syncthreads()" or (barrier and partner == 8)
        for order in ORDERS:
            out, values = np.zeros(64, np.float32), aligned(64)
            kernel.order = order
            if enough or not races:
                kernel.launch((1,), (64,), (out, values), 256)
                continue
            message = f"race: .* of {memory} memory, which .* of the same block .* at kernel.cu"
            if case in ("read after write", "vectors"):  # the reader may come first
                message += "|uses shared memory that nobody has written"
            with pytest.raises(MachineError, match=message):
                kernel.launch((1,), (64,), (out, values), 256)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("out[threadIdx.x] = blockIdx.x;", "writes word .* another block writes"),
        ("out[32 * blockIdx.x + threadIdx.x] = out[threadIdx.x] + 1;", "another block"),
        ("out[32 * blockIdx.x + threadIdx.x] = in[threadIdx.x];", None),
    ],
)
def test_races_of_blocks(body, match, order):
    kernel = load(body, "float* out, const float* in")
    kernel.order = order
    arrays = np.zeros(96, np.float32), np.ones(32, np.float32)
    if match is None:
        kernel.launch((3,), (32,), arrays)
        assert arrays[0].all()
    else:
        with pytest.raises(MachineError, match=f"race: .*{match}"):
            kernel.launch((3,), (32,), arrays)


# Arguments


def test_arguments_of_every_kind():
    pair = np.dtype([("count", np.int32), ("value", np.float64)], align=True)
    source = """
        struct Pair { int count; double value; };
        extern "C" __global__ void __launch_bounds__(64) kernel(
            double* out, const float* __restrict__ in, Pair pair, float f, int i, long long l,
            double d) {
            out[0] = pair.count + pair.value + in[1] + f + i + (l == 10000) + d;
        }
    """
    kernel = ptx.load(source, "kernel", {"UNUSED": 1})
    out = np.zeros(1)
    structure = np.array((1, 0.5), pair)[()]
    values = (np.float32([0, 10]), structure, np.float32(100), np.int32(1000), 10**4, 1e5)
    kernel((1,), (1,), (out, *values))
    assert out[0] == 101112.5


@pytest.mark.parametrize("values", [(1,), (np.int32(1), 2), ()])
def test_sizes_of_arguments_must_fit(values):
    kernel = load("", "float* out, int i")
    with pytest.raises(MachineError, match=r"for parameters of \(8, 4\) bytes"):
        kernel.launch((1,), (1,), (np.zeros(1, np.float32), *values))


def test_arguments_that_no_kernel_takes():
    with pytest.raises(TypeError, match="NoneType"):
        load("").launch((1,), (1,), (None,))


def test_sizes_of_launches():
    kernel, out = load(""), np.zeros(1, np.float32)
    for grid, block in (((0,), (1,)), ((1,), (1025,)), ((1, 1, 1, 1), (1,))):
        with pytest.raises(MachineError):
            kernel.launch(grid, block, (out,))


def test_what_is_not_known_is_refused():
    with pytest.raises(nvrtc.CompileError, match="undeclared"):
        load("undeclared = 1;")
    with pytest.raises(DecodeError, match=r"(atom|red)\.global\.add\.f32.*kernel.cu:2"):
        load("atomicAdd(out, 1.0f);")
    with pytest.raises(MachineError, match=r"does not know sin\.approx"):
        load("out[0] = __sinf(out[1]);")
    with pytest.raises(DecodeError, match="barrier"):
        load('asm volatile("bar.sync 1;");')
    with pytest.raises(DecodeError, match="no kernel other"):
        ptx.load("", "other")


# Numbers

INTEGERS = np.array([0, 1, 2, 3, 7, 31, 32, 33, 2**31 - 1, 2**31, 2**32 - 7, 2**32 - 1], np.uint64)


def integer_pairs():
    """Return 32-bit numbers, twice 256: what lies at borders with each other, and others."""
    drawn = np.random.default_rng(4).integers(0, 2**32, (2, 112), dtype=np.uint64)
    pairs = [x.ravel() for x in np.meshgrid(INTEGERS, INTEGERS)]
    return [np.concatenate(both) for both in zip(pairs, drawn, strict=True)]


def signed(x, bits=32):
    return np.where(x >> np.uint64(bits - 1) & np.uint64(1), x.astype(np.int64) - 2**bits, x)


def truncated(a, b):
    """Divide as C does."""
    return [
        int(abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b, strict=True)
    ]


U, S = (lambda x: [int(v) for v in x]), (lambda x: [int(v) for v in signed(x)])
NONZERO = {"div.s32", "div.u32", "rem.s32", "rem.u32"}
BINARY = {
    "add.s32": lambda a, b: [x + y for x, y in zip(U(a), U(b), strict=True)],
    "sub.u32": lambda a, b: [x - y for x, y in zip(U(a), U(b), strict=True)],
    "mul.lo.s32": lambda a, b: [x * y for x, y in zip(U(a), U(b), strict=True)],
    "mul.hi.s32": lambda a, b: [x * y >> 32 for x, y in zip(S(a), S(b), strict=True)],
    "mul.hi.u32": lambda a, b: [x * y >> 32 for x, y in zip(U(a), U(b), strict=True)],
    "div.s32": lambda a, b: truncated(S(a), S(b)),
    "div.u32": lambda a, b: truncated(U(a), U(b)),
    "rem.s32": lambda a, b: [
        x - q * y for x, y, q in zip(S(a), S(b), truncated(S(a), S(b)), strict=True)
    ],
    "rem.u32": lambda a, b: [x % y for x, y in zip(U(a), U(b), strict=True)],
    "min.s32": lambda a, b: map(min, S(a), S(b)),
    "max.s32": lambda a, b: map(max, S(a), S(b)),
    "min.u32": lambda a, b: map(min, U(a), U(b)),
    "max.u32": lambda a, b: map(max, U(a), U(b)),
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, b: [x << min(y, 32) for x, y in zip(U(a), U(b), strict=True)],
    "shr.u32": lambda a, b: [x >> min(y, 32) for x, y in zip(U(a), U(b), strict=True)],
    "shr.s32": lambda a, b: [x >> min(y, 31) for x, y in zip(S(a), U(b), strict=True)],
}
UNARY = {
    "not.b32": lambda a: ~a,
    "neg.s32": lambda a: [-x for x in S(a)],
    "popc.b32": lambda a: [x.bit_count() for x in U(a)],
    "clz.b32": lambda a: [32 - x.bit_length() for x in U(a)],
    "bfind.shiftamt.u32": lambda a: [32 - x.bit_length() if x else -1 for x in U(a)],
    "brev.b32": lambda a: [int(f"{x:032b}"[::-1], 2) for x in U(a)],
}
COMPARISONS = {
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
}


def apply(instructions, inputs, kind="r", ctype="unsigned"):
    """Run instructions on 256 numbers each; ``{d}``, ``{a}`` and ``{b}`` are their operands."""
    lines = [
        r'asm volatile("{{\n.reg .pred %%p;\n{}\n}}" : "={}"(d) : "{}"(a), "{}"(b));'.format(
            text.format(d="%0", a="%1", b="%2").replace("; ", r";\n"), result, kind, kind
        ) + f"\nout[256 * {i} + t] = d;"
        for i, (text, result) in enumerate(instructions)
    ]  # fmt: skip
    body = f"int t = threadIdx.x; {ctype} d, a = in[t], b = in[t + 256];\n" + "\n".join(lines)
    given = np.concatenate(inputs)
    out = np.zeros((len(instructions), 256), given.dtype)
    kernel = load(body, f"{ctype}* out, const {ctype}* in")
    kernel.launch((1,), (256,), (out, given))
    return out


def test_integers():
    a, b = integer_pairs()
    selection = "selp.u32 {d}, 1, 0, %%p;"
    pairs = [f"{name} {{d}}, {{a}}, {{b}};" for name in BINARY]
    singles = [f"{name} {{d}}, {{a}};" for name in UNARY]
    compared = [
        f"setp.{name}.{kind} %%p, {{a}}, {{b}}; {selection}"
        for name in COMPARISONS
        for kind in ("s32", "u32")
    ]
    texts = [(text, "r") for text in (*pairs, *singles, *compared)]
    found = iter(apply(texts, [x.astype(np.uint32) for x in (a, b)]))
    for name, exact in BINARY.items():
        chosen = b != 0 if name in NONZERO else slice(None)
        expected = [int(x) % 2**32 for x in exact(a[chosen], b[chosen])]
        np.testing.assert_array_equal(next(found)[chosen], expected, name)
    for name, exact in UNARY.items():
        np.testing.assert_array_equal(next(found), [int(x) % 2**32 for x in exact(a)], name)
    for name, exact in COMPARISONS.items():
        np.testing.assert_array_equal(next(found), exact(signed(a), signed(b)), name)
        np.testing.assert_array_equal(next(found), exact(a, b), name)


FLOATS = np.float32(
    [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-39, 3e38, 2.5, -7, 1e-30, -1e-30, 16, 0.1, 1 / 3]
)


def test_floats():
    """Exactly, but for instructions that say that they approximate."""
    a, b = (x.ravel().copy() for x in np.meshgrid(FLOATS, FLOATS))
    flushed = [
        np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0, x), x) for x in (a, b)
    ]
    x, y = (v.astype(np.float32) for v in flushed)
    tests = {f"{name}.ftz.f32": "" for name in ("add", "sub", "mul", "div.rn", "max", "min")}
    texts = [(f"{name} {{d}}, {{a}}, {{b}};", "f") for name in tests]
    texts += [("sqrt.rn.ftz.f32 {d}, {a};", "f"), ("neg.ftz.f32 {d}, {a};", "f")]
    texts += [("abs.ftz.f32 {d}, {a};", "f")]
    comparisons = [*COMPARISONS, *(f"{name}u" for name in COMPARISONS), "num", "nan"]
    texts += [
        (f"setp.{name}.ftz.f32 %%p, {{a}}, {{b}}; selp.f32 {{d}}, 1f, 0f, %%p;"
         .replace("1f", "0f3f800000").replace(" 0f,", " 0f00000000,"), "f")
        for name in comparisons
    ]  # fmt: skip
    texts += [("rsqrt.approx.ftz.f32 {d}, {a};", "f"), ("div.approx.ftz.f32 {d}, {a}, {b};", "f")]
    found = apply(texts, (a, b), "f", "float")
    tiny = np.finfo(np.float32).tiny
    with np.errstate(all="ignore"):
        exact = [x + y, x - y, x * y, x / y, np.fmax(x, y), np.fmin(x, y), np.sqrt(x), -x, abs(x)]
        exact = [np.where(np.abs(v) < tiny, np.copysign(np.float32(0), v), v) for v in exact]
        zeros = (x == 0) & (y == 0)
        exact[4][zeros] = np.where(np.signbit(x) & np.signbit(y), -0.0, 0.0)[zeros]
        exact[5][zeros] = np.where(np.signbit(x) | np.signbit(y), -0.0, 0.0)[zeros]
        unordered = np.isnan(x) | np.isnan(y)
        exact += [f(x, y) & ~unordered for f in COMPARISONS.values()]
        exact += [f(x, y) | unordered for f in COMPARISONS.values()]
        exact += [~unordered, unordered]
        for text, one, expected in zip(texts, found, exact, strict=False):
            np.testing.assert_array_equal(one, expected, str(text))
            numbers = ~np.isnan(expected.astype(float))
            np.testing.assert_array_equal(
                np.signbit(one)[numbers], np.signbit(expected)[numbers], str(text)
            )
        for one, expected in zip(found[-2:], (1 / np.sqrt(x.astype(float)), x / y), strict=True):
            rounded = expected.astype(np.float32)
            usual = np.isfinite(rounded) & (abs(rounded) > 2 * tiny)
            np.testing.assert_allclose(one[usual], expected[usual], rtol=2.0**-22)
            assert (one[usual] != rounded[usual]).any()
            np.testing.assert_array_equal(
                one[~np.isfinite(rounded)], rounded[~np.isfinite(rounded)]
            )


def test_multiply_add_rounds_once():
    rng = np.random.default_rng(5)
    a, b = (rng.integers(2**23, 2**24, 256).astype(np.float32) for _ in range(2))
    kernel = load("int t = threadIdx.x; out[t] = fmaf(in[t], in[t + 256], -in[t] * in[t + 256]);",
                  "float* out, const float* in")  # fmt: skip
    out = np.zeros(256, np.float32)
    kernel.launch((1,), (256,), (out, np.concatenate([a, b])))
    exact = a.astype(np.int64) * b.astype(np.int64)
    np.testing.assert_array_equal(out, exact - (a * b).astype(np.int64))
    assert out.any()


def test_wide_numbers():
    x, y = 2**33, 3 * 2**20
    expressions = {
        "x * y + 5": x * y + 5, "x / y": x // y, "x % y": x % y, "-x >> 3": -(2**30),
        "(unsigned long long)x << 20": 2**53, "x == y": 0, "x > y": 1, "min(x, y)": y,
        "(long long)(int)y * -7": -7 * y, "x ^ y | 5": x + y + 5,
        "__double_as_longlong(fma(1.5, __longlong_as_double(x << 29), (double)int(y)))":
            int(np.float64(1.5 * np.int64(x << 29).view(np.float64) + y).view(np.int64)),
        "__double_as_longlong((double)(float)(int(y) / 7.0))":
            int(np.float64(np.float32(y / 7)).view(np.int64)),
        "__double_as_longlong(__longlong_as_double(x << 20) < 2.0 ? 1.0 : 0.0)":
            int(np.float64(1).view(np.int64)),
    }  # fmt: skip
    body = "\n".join(f"out[{i}] = {text};" for i, text in enumerate(expressions))
    out = np.zeros(len(expressions), np.int64)
    load(body, "long long* out, long long x, long long y").launch((1,), (1,), (out, x, y))
    assert dict(zip(expressions, out.tolist(), strict=True)) == expressions


def test_halves():
    halves = np.arange(65536, dtype=np.uint16)
    out = np.zeros(len(halves), np.float32)
    kernel = load(
        "int i = blockIdx.x * 256 + threadIdx.x; float f;"
        'asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(in[i])); out[i] = f;',
        "float* out, const unsigned short* in",
    )
    kernel.launch((256,), (256,), (out, halves))
    expected = halves.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(expected))


MMA = """
    int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
    unsigned fa[4] = {__float_as_uint(a[8 * g + t]), __float_as_uint(a[8 * (g + 8) + t]),
                      __float_as_uint(a[8 * g + t + 4]), __float_as_uint(a[8 * (g + 8) + t + 4])};
    unsigned fb[2] = {__float_as_uint(b[8 * t + g]), __float_as_uint(b[8 * (t + 4) + g])};
    float x = c[8 * g + 2 * t], y = c[8 * g + 2 * t + 1];
    float z = c[8 * (g + 8) + 2 * t], w = c[8 * (g + 8) + 2 * t + 1];
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(x), "+f"(y), "+f"(z), "+f"(w)
        : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    c[8 * g + 2 * t] = x;
    c[8 * g + 2 * t + 1] = y;
    c[8 * (g + 8) + 2 * t] = z;
    c[8 * (g + 8) + 2 * t + 1] = w;
"""


def mma(a, b, c):
    kernel = load(MMA, "const float* a, const float* b, float* c")
    a, b, c = (np.array(x, np.float32) for x in (a, b, c))
    kernel.launch((1,), (32,), (a, b, c))
    return c


def test_tensor_core_product():
    rng = np.random.default_rng(2)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((16, 8), (8, 8), (16, 8)))
    cut = [(x.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32) for x in (a, b)]
    exact = c.astype(np.float64) + cut[0].astype(np.float64) @ cut[1].astype(np.float64)
    out = mma(a, b, c)
    np.testing.assert_array_less(np.abs(out), np.abs(exact) * (1 + 1e-12))  # toward zero
    np.testing.assert_allclose(out, exact, rtol=2.0**-23)


def test_tensor_core_rounding():
    a, b, c = np.zeros((16, 8)), np.zeros((8, 8)), np.zeros((16, 8))
    a[0, 0], b[0, 0], c[0, 0] = 1, 2.0**-24 + 2.0**-30, 1  # above half a unit: still down to 1
    a[1, 1], b[1, 1], c[1, 1] = 1, -(2.0**-30), 1  # the float below 1
    a[2, 2], b[2, 2] = 1 + 2.0**-11, 1  # more than 10 bits of fraction: cut off
    out = mma(a, b, c)
    assert out[0, 0] == 1
    assert out[1, 1] == np.nextafter(np.float32(1), np.float32(0))
    assert out[2, 2] == 1


# Counting


def aligned(count: int) -> np.ndarray:
    """Return zeros that begin with a sector, as memory of a GPU does."""
    array = np.zeros(count + 8, np.float32)
    start = -(array.ctypes.data // 4) % 8
    return array[start : start + count]


def count(body: str, *, threads: int = 32) -> ptx.Counts:
    """Run one block with 4 KiB of shared memory ``p``, and count."""
    sink = "auto sink = [&](float4 v) { out[lane] = v.x + v.y + v.z + v.w; };"
    kernel = load(f"int lane = threadIdx.x; SHARED_MEMORY(p); {sink}\n{body};",
                  "float* out, const float* in")  # fmt: skip
    kernel.arrays = {"out": aligned(1024), "in": aligned(1024)}
    kernel.launch((1,), (threads,), tuple(kernel.arrays.values()), 4096)
    return kernel.counts


FILL = "for (int i = lane; i < 1024; i += 32) p[i] = i;\n__syncthreads();\n"  # 32 wavefronts

# Wavefronts, and how many would do, by hand: 32 banks of 4 bytes.
SHARED_PATTERNS = {
    "p[lane] = 0": (1, 1),
    "p[lane / 2] = 0": (1, 1),  # 16 words, two lanes each
    "p[2 * lane] = 0": (2, 1),  # two words in every other bank
    "p[3 * lane] = 0": (1, 1),
    "p[16 * lane] = 0": (16, 1),
    "p[32 * lane] = 0": (32, 1),  # all in one bank
    "p[31 * lane] = 0": (1, 1),
    "if (lane < 8) p[32 * lane] = 0": (8, 1),
    "if (lane < 0) p[lane] = 0": (0, 0),
    "for (int i = 0; i < 5; ++i) p[lane + 32 * i] = 0": (5, 5),
    "store4(p + 4 * lane, make_float4(1, 2, 3, 4))": (4, 4),
    "shared_as<double>(p)[lane] = 1": (2, 2),
    FILL + "out[lane] = p[7]": (33, 33),  # broadcast
    FILL + "out[lane] = load2(p + 2 * lane).y + load2(p + 2 * lane).x": (34, 34),
    FILL + "float2 v = load2(p + 2 * (lane % 16)); out[lane] = v.x + v.y": (33, 33),  # 128 bytes
    FILL + "float2 v = load2(p + 4 * lane); out[lane] = v.x + v.y": (36, 34),
    FILL + "sink(load4(p + 4 * lane))": (36, 36),
    FILL + "sink(load4(p))": (33, 33),
    FILL + "sink(load4(p + 4 * (lane / 4)))": (33, 33),  # 8 quads, all banks
    FILL + "sink(load4(p + 4 * (lane / 2)))": (34, 34),  # a half warp fits one wavefront
    FILL + "sink(load4(p + 32 * (lane % 8)))": (64, 33),  # 8 lanes at the same banks
    FILL + "sink(load4(p + 36 * (lane % 8)))": (33, 33),  # rows of 9 quads: 8 lanes at all banks
    FILL + "sink(load4(p + 16 * lane))": (48, 36),  # rows of 4 quads: 8 lanes at 2 places of 8
    FILL + "sink(load4(p + 20 * lane))": (36, 36),  # rows of 5 quads
    FILL + "p[lane] += 1": (34, 34),  # a read and a write
}


@pytest.mark.parametrize("pattern", SHARED_PATTERNS)
def test_wavefronts(pattern):
    shared = count(pattern).shared
    assert (shared.wavefronts, shared.ideal) == SHARED_PATTERNS[pattern]


# Accesses, bytes and sectors of 32 bytes.
GLOBAL_PATTERNS = {
    "out[lane] = in[lane]": (1, 128, 4),
    "out[lane] = in[0]": (1, 128, 1),
    "out[lane] = in[2 * lane]": (1, 128, 8),
    "out[lane] = in[8 * lane]": (1, 128, 32),
    "out[lane] = in[lane + 4]": (1, 128, 5),
    "sink(load4(in + 4 * lane))": (1, 512, 16),
    "float2 v = load2(in + 2 * lane); out[lane] = v.x + v.y": (1, 256, 8),
    "out[lane] = __ldg(in + lane)": (1, 128, 4),
    "out[lane] = lane < 3 ? in[lane] : 0.0f": (1, 12, 1),
    "float v = 0; for (int i = lane; i < 80; i += 32) v += in[i]; out[lane] = v": (3, 320, 10),
}


@pytest.mark.parametrize("pattern", GLOBAL_PATTERNS)
def test_global_traffic(pattern):
    counts = count(f"{pattern}; store4(out + 4 * lane + 64, make_float4(1, 2, 3, 4))")
    assert counts.reads["in"] == ptx.Traffic(*GLOBAL_PATTERNS[pattern])
    assert counts.writes["in"] == counts.reads["out"] == ptx.Traffic()
    assert counts.writes["out"] == ptx.Traffic(2, 128 + 512, 4 + 16)


def test_conflicting_sites():
    counts = count(
        "p[lane] = 1;\np[2 * lane + 64] = 2;\n"
        "for (int i = 0; i < 3; ++i)\np[8 * lane + 256 * i + 128] = 3;"
    )
    found = {}
    for site in counts.conflicting():
        accesses, conflicts = found.get(site.where, (0, 0))
        found[site.where] = accesses + site.counts.accesses, conflicts + site.counts.conflicts
    assert found == {"kernel.cu:4": (1, 1), "kernel.cu:6": (3, 3 * 7)}


def test_counts_are_of_one_launch():
    kernel = load("int i = 64 * blockIdx.x + threadIdx.x; out[i] += 1;")
    for blocks in (1, 2):
        kernel.launch((blocks,), (64,), (aligned(128),))
        expected = ptx.Traffic(2 * blocks, 256 * blocks, 8 * blocks)
        assert kernel.counts.reads["argument 0"] == kernel.counts.writes["argument 0"] == expected
