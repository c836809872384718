"""The execution model that kernels are tested with on the CPU, held against CUDA's definitions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest
from cuda_on_cpu import CudaOnCpuError

pytestmark = pytest.mark.skipif(not cuda_on_cpu.have_compiler(), reason="needs g++")

LANES = np.arange(32)
ORDERS = ["forward", "reverse", "shuffle:1", "shuffle:2"]


def load(body: str, parameters: str = "Global<float> out", **options) -> cuda_on_cpu.Kernel:
    """Compile a kernel of the given body."""
    source = f'extern "C" __global__ void kernel({parameters}) {{\n{textwrap.dedent(body)}\n}}'
    return cuda_on_cpu.load(source, "kernel", **options)


def run(body: str, *, threads: int = 32, shared: int = 0, order: str = "forward", **options):
    """Run one block whose threads may each set ``out[threadIdx.x]``; return ``out``."""
    out = np.zeros(threads, np.float32)
    kernel = load(body, **options)
    kernel.order = order
    kernel.launch((1,), (threads,), (out,), shared)
    return out


def one_of(bodies) -> str:
    """Return a body that does one of several, by ``which``: they compile faster together."""
    return "\n".join(f"if (which == {i}) {{\n#line 2\n{body};\n}}" for i, body in enumerate(bodies))


# Warp operations


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
    kinds = ("int", "unsigned", "float", "long long", "double")
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
    body = f"""
        int lane = threadIdx.x, v = {true_lanes}u >> lane & 1;
        unsigned ballot = __ballot_sync(~0u, v);
        int any = __any_sync(~0u, v), all = __all_sync(~0u, v);
        out[lane] = (ballot == {true_lanes}u) + 2 * any + 4 * all;
    """
    expected = 1 + 2 * (true_lanes != 0) + 4 * (true_lanes == 0xFFFFFFFF)
    np.testing.assert_array_equal(run(body), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_half_warps_go_their_own_ways(order):
    body = """
        int lane = threadIdx.x, low = lane < 16;
        unsigned mask = low ? 0x0000ffffu : 0xffff0000u;
        float v = lane;
        for (int i = 0; i < (low ? 3 : 5); ++i) v = __shfl_sync(mask, v, lane ^ 1);
        __syncwarp();
        out[lane] = v;
    """
    np.testing.assert_array_equal(run(body, order=order), LANES ^ 1)


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


# The block


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("true_threads", [0, 1, 99, 100])
def test_barriers_that_vote(true_threads, order):
    body = f"""
        int v = 2 * (threadIdx.x < {true_threads});
        int count = __syncthreads_count(v), any = __syncthreads_or(v), all = __syncthreads_and(v);
        out[threadIdx.x] = count + 1000 * any + 2000 * all;
    """
    expected = true_threads + 1000 * (true_threads > 0) + 2000 * (true_threads == 100)
    np.testing.assert_array_equal(run(body, threads=100, order=order), expected)


def test_indices():
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
    for order in ORDERS:
        out[:] = 0
        kernel = load(body)
        kernel.order = order
        kernel.launch(grid, block, (out,))
        np.testing.assert_array_equal(out, np.arange(len(out)))


def test_unwritten_shared_memory_is_nan():
    body = """
        SHARED_MEMORY(values);
        int wild = shared_as<int>(values)[threadIdx.x];
        double wide = shared_as<double>(values)[threadIdx.x / 2];
        bool poisoned = isnan(values[threadIdx.x]) && isnan(wide) && wild > 2000000000;
        values[threadIdx.x] = 0;
        out[blockIdx.x * blockDim.x + threadIdx.x] = poisoned;
    """
    out = np.zeros(3 * 64, np.float32)
    load(body).launch((3,), (64,), (out,), 256)
    assert out.all()


@pytest.mark.skipif("GPU_ALS_SANITIZE" in os.environ, reason="the sanitiser ends the process")
def test_overrun_shared_memory_is_noticed():
    with pytest.raises(CudaOnCpuError, match=r"kernel kernel, block \(0, 0, 0\).* 128 bytes"):
        run("SHARED_MEMORY(values); values[threadIdx.x + 1] = 0;", shared=128)


def test_more_than_48_kib_must_be_allowed():
    kernel = load("SHARED_MEMORY(values); values[threadIdx.x] = 0;")
    out = np.zeros(1, np.float32)
    with pytest.raises(CudaOnCpuError, match="65536 bytes of shared memory, 49152 allowed"):
        kernel.launch((1,), (32,), (out,), 65536)
    kernel.max_dynamic_shared_size_bytes = 65536
    kernel.launch((1,), (32,), (out,), 65536)
    with pytest.raises(CudaOnCpuError, match="1000000 bytes"):
        kernel.max_dynamic_shared_size_bytes = 1000000


# Errors of kernels

DIVERGENT = {
    "a thread has returned": (
        "if (threadIdx.x == 40) return;\n__syncthreads();",
        r"divergent barrier: thread \(\d+, 0, 0\) .*thread \(40, 0, 0\) has exited",
    ),
    "a thread returns while others wait": (
        "if (threadIdx.x < 63) __syncthreads();",
        r"divergent barrier: thread \(0, 0, 0\) waits in __syncthreads at kernel.cu:2, "
        r"but thread \(63, 0, 0\) has exited",
    ),
    "two call sites": (
        "if (threadIdx.x < 32)\n__syncthreads();\nelse\n__syncthreads();",
        r"divergent barrier: .* at kernel.cu:3, but .* at kernel.cu:5",
    ),
    "two kinds of barriers": (
        "if (threadIdx.x < 32) __syncthreads(); else __syncthreads_or(1);",
        r"divergent barrier: .* __syncthreads at .* __syncthreads_or at",
    ),
    "half a warp": (
        "if (threadIdx.x < 16) __syncwarp();",
        r"divergent warp operation: thread \(0, 0, 0\) waits in __syncwarp of lanes 0xffffffff "
        r"at kernel.cu:2, but thread \(16, 0, 0\) has exited",
    ),
    "half a warp at the barrier": (
        "if (threadIdx.x < 16) __syncwarp(); __syncthreads();",
        r"divergent warp operation: .*waits in __syncwarp.* but .*waits in __syncthreads",
    ),
    "two warp operations": (
        "if (threadIdx.x % 2) __syncwarp(); else __any_sync(~0u, 1);",
        r"divergent warp operation: .*waits in __any_sync.* but .*waits in __syncwarp",
    ),
    "two masks": (
        "__syncwarp(threadIdx.x % 32 < 16 ? ~0u : 0xffff0000u);",
        r"waits in __syncwarp of lanes 0xffffffff .* but thread \(16, 0, 0\)",
    ),
    "a mask without the caller": (
        "__syncwarp(0xffffu);",
        r"thread \(16, 0, 0\): __syncwarp at kernel.cu:2 with mask 0xffff, which does not name",
    ),
    "a lane outside of the mask": (
        "if (threadIdx.x < 16) __shfl_sync(0xffffu, 1.0f, 20);",
        r"__shfl_sync at kernel.cu:2 with mask 0xffff reads lane 20",
    ),
    "a misaligned vector": (
        "SHARED_MEMORY(p); store4(p + 1, make_float4(0, 0, 0, 0));",
        r"misaligned access of 16 bytes at kernel.cu:2",
    ),
}


@pytest.mark.parametrize("case", DIVERGENT)
def test_errors_name_the_place(case):
    kernel = load(one_of(body for body, _ in DIVERGENT.values()), "int which")
    match = r"kernel kernel, block \(0, 0, 0\), .*" + DIVERGENT[case][1]
    with pytest.raises(CudaOnCpuError, match=match):
        kernel.launch((1,), (64,), (np.int32(list(DIVERGENT).index(case)),), 64)


def test_lanes_that_do_not_exist():
    with pytest.raises(CudaOnCpuError, match="the warp has no lane 20"):
        run("__syncwarp();", threads=20)
    run("__syncwarp(0xfffffu);", threads=20)


def test_a_kernel_works_after_it_has_failed():
    kernel = load("if (out[0] == 0 && threadIdx.x) return; __syncthreads(); out[1] = 2;")
    out = np.zeros(2, np.float32)
    for _ in range(3):
        with pytest.raises(CudaOnCpuError, match="divergent"):
            kernel.launch((2,), (64,), (out,))
    out[0] = 1
    kernel.launch((2,), (64,), (out,))
    assert out[1] == 2


def test_orders_expose_a_missing_barrier():
    body = """
        SHARED_MEMORY(values);
        values[threadIdx.x] = threadIdx.x;
        {barrier}
        out[threadIdx.x] = values[threadIdx.x ^ {partner}];
    """
    for partner, barrier in ((1, "__syncwarp();"), (32, "__syncthreads();")):
        expected = np.arange(64) ^ partner
        for order in ORDERS:
            with_it = body.format(partner=partner, barrier=barrier)
            out = run(with_it, threads=64, shared=256, order=order)
            np.testing.assert_array_equal(out, expected)
            without = body.format(partner=partner, barrier="")
            out = run(without, threads=64, shared=256, order=order)
            assert not np.array_equal(out, expected), (partner, order)


# Arguments


def test_arguments_of_every_kind():
    pair = np.dtype([("count", np.int32), ("value", np.float64)], align=True)
    source = """
        struct Pair { int count; double value; };
        extern "C" __global__ void __launch_bounds__(64) kernel(
            Global<double> out, Global<const float> __restrict__ in, Pair pair, float f, int i,
            long long l, double d, bool b) {
            out[0] = pair.count + pair.value + in[1] + f + i + l + d + b;
        }
    """
    kernel = cuda_on_cpu.load(source, "kernel", {"UNUSED": True})
    out = np.zeros(1)
    structure = np.array((1, 0.5), pair)[()]
    values = (np.float32([0, 10]), structure, np.float32(100), np.int32(1000), 10**4, 1e5, True)
    kernel((1,), (1,), (out, *values))
    assert out[0] == 111112.5


@pytest.mark.parametrize("values", [(1,), (np.int32(1), 2), ()])
def test_sizes_of_arguments_must_fit(values):
    kernel = load("", "Global<float> out, int i")
    with pytest.raises(CudaOnCpuError, match=r"for parameters of \[8, 4\] bytes"):
        kernel.launch((1,), (1,), (np.zeros(1, np.float32), *values))


def test_arguments_that_no_kernel_takes():
    with pytest.raises(TypeError, match="NoneType"):
        load("").launch((1,), (1,), (None,))


def test_sizes_of_launches():
    kernel, out = load(""), np.zeros(1, np.float32)
    for grid, block in (((0,), (1,)), ((1,), (1025,)), ((1, 1, 1, 1), (1,))):
        with pytest.raises(CudaOnCpuError):
            kernel.launch(grid, block, (out,))


def test_errors_of_the_compiler():
    with pytest.raises(CudaOnCpuError, match=r"kernel.cu:2:.*undeclared"):
        load("undeclared = 1;")


# Numbers


def test_bits_and_maths():
    expressions = {
        "__popc(0xf0f0u)": 8, "__ffs(0)": 0, "__ffs(8)": 4, "__clz(0)": 32, "__clz(1)": 31,
        "min(2, 3)": 2, "max(2.0f, 3.0f)": 3, "max(2u, 3u)": 3, "rsqrtf(4)": 0.5,
        "fmaf(2, 3, 4)": 10, "__float_as_int(1.0f) == 0x3f800000": 1,
        "__uint_as_float(0x40000000u)": 2, "isfinite(INFINITY)": 0, "isnan(NAN)": 1,
        "load2(in).y + load4(in).w + __ldg(in)": 24, "make_int4(1, 2, 3, 4).z": 3,
    }  # fmt: skip
    body = "\n".join(f"out[{i}] = {text};" for i, text in enumerate(expressions))
    out, values = np.zeros(len(expressions), np.float32), np.float32([4, 8, 10, 12])
    load(body, "Global<float> out, Global<const float> in").launch((1,), (1,), (out, values))
    np.testing.assert_array_equal(out, list(expressions.values()))


def test_halves():
    halves = np.arange(65536, dtype=np.uint16)
    out = np.zeros(len(halves), np.float32)
    kernel = load(
        "int i = blockIdx.x * 256 + threadIdx.x; out[i] = half_to_float(in[i]);",
        "Global<float> out, Global<const unsigned short> in",
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
    float fc[4] = {c[8 * g + 2 * t], c[8 * g + 2 * t + 1],
                   c[8 * (g + 8) + 2 * t], c[8 * (g + 8) + 2 * t + 1]};
    mma_tf32_16x8x8(fc, fa, fb);
    c[8 * g + 2 * t] = fc[0];
    c[8 * g + 2 * t + 1] = fc[1];
    c[8 * (g + 8) + 2 * t] = fc[2];
    c[8 * (g + 8) + 2 * t + 1] = fc[3];
"""


def mma(a, b, c):
    kernel = load(MMA, "Global<const float> a, Global<const float> b, Global<float> c")
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


def count(body: str, *, threads: int = 32, which: int = 0) -> cuda_on_cpu.Counts:
    """Run one block with 4 KiB of shared memory ``p``, and count."""
    parameters = "Global<float> out, Global<const float> in, int which"
    body = f"int lane = threadIdx.x; SHARED_MEMORY(p);\n{body}"
    kernel = load(body, parameters, count=True)
    out, values = aligned(1024), aligned(1024)
    kernel.count_range("out", out)
    kernel.count_range("in", values)
    kernel.launch((1,), (threads,), (out, values, np.int32(which)), 4096)
    return kernel.counts


# Wavefronts, and how many would do, by hand: 32 banks of 4 bytes.
SHARED_PATTERNS = {
    "p[lane] = 0": (1, 1),
    "p[lane / 2] = 0": (1, 1),  # 16 words, two lanes each
    "float v = p[7]": (1, 1),  # broadcast
    "p[2 * lane] = 0": (2, 1),  # two words in every other bank
    "p[3 * lane] = 0": (1, 1),
    "p[16 * lane] = 0": (16, 1),
    "p[32 * lane] = 0": (32, 1),  # all in one bank
    "p[33 * lane] = 0": (1, 1),
    "if (lane < 8) p[32 * lane] = 0": (8, 1),
    "if (lane < 0) p[lane] = 0": (0, 0),
    "load2(p + 2 * lane)": (2, 2),
    "load2(p + 2 * (lane % 16))": (1, 1),  # both halves read the same 128 bytes
    "load2(p + 4 * lane)": (4, 2),
    "load4(p + 4 * lane)": (4, 4),
    "load4(p)": (1, 1),
    "load4(p + 4 * (lane / 4))": (1, 1),  # 8 quads, all banks
    "load4(p + 4 * (lane / 2))": (2, 2),  # a half warp fits one wavefront
    "load4(p + 32 * (lane % 8))": (32, 1),  # rows of 8 quads: 8 lanes at the same banks
    "load4(p + 36 * (lane % 8))": (1, 1),  # rows of 9 quads: 8 lanes at all banks
    "load4(p + 16 * lane)": (16, 4),  # rows of 4 quads: 8 lanes at 2 places of 8
    "load4(p + 20 * lane)": (4, 4),  # rows of 5 quads
    "p[lane] += 1": (2, 2),  # a read and a write
    "for (int i = 0; i < 5; ++i) p[lane + i] = 0": (5, 5),
    "for (int i = 0; i <= lane; ++i) p[lane] = 0": (32, 32),
    "for (int i = 0; i <= lane / 16; ++i) { p[lane] = 0; __syncwarp(~0u << 16 * i); }": (2, 2),
    "shared_as<unsigned short>(p)[lane] = 0": (1, 1),
}


@pytest.mark.parametrize("pattern", SHARED_PATTERNS)
def test_wavefronts(pattern):
    which = list(SHARED_PATTERNS).index(pattern)
    shared = count(one_of(SHARED_PATTERNS), which=which).shared
    assert (shared.wavefronts, shared.ideal) == SHARED_PATTERNS[pattern]


# Accesses, bytes and sectors of 32 bytes.
GLOBAL_PATTERNS = {
    "float v = in[lane]": (1, 128, 4),
    "float v = in[0]": (1, 128, 1),
    "float v = in[2 * lane]": (1, 128, 8),
    "float v = in[8 * lane]": (1, 128, 32),
    "float v = in[lane + 4]": (1, 128, 5),
    "load4(in + 4 * lane)": (1, 512, 16),
    "load2(in + 2 * lane)": (1, 256, 8),
    "float v = __ldg(in + lane)": (1, 128, 4),
    "float v = lane < 3 ? in[lane] : 0.0f": (1, 12, 1),
    "for (int i = lane; i < 80; i += 32) float v = in[i]": (3, 320, 10),
}


@pytest.mark.parametrize("pattern", GLOBAL_PATTERNS)
def test_global_traffic(pattern):
    body = one_of(GLOBAL_PATTERNS) + "out[lane] = 0; store4(out + 4 * lane, float4());"
    counts = count(body, which=list(GLOBAL_PATTERNS).index(pattern))
    assert counts.reads["in"] == cuda_on_cpu.Traffic(*GLOBAL_PATTERNS[pattern])
    assert counts.writes["in"] == counts.reads["out"] == cuda_on_cpu.Traffic()
    assert counts.writes["out"] == cuda_on_cpu.Traffic(2, 128 + 512, 4 + 16)
    assert counts.reads["other"] == counts.writes["other"] == cuda_on_cpu.Traffic()


def test_worst_sites():
    body = "p[lane] = 0;\np[2 * lane] = 0;\nfor (int i = 0; i < 3; ++i)\np[8 * lane] = 0;"
    worst = count(body, threads=64).worst_sites()
    assert [site.where for site in worst] == ["kernel.cu:6", "kernel.cu:4"]
    assert [site.counts.accesses for site in worst] == [6, 2]
    assert [site.counts.conflicts for site in worst] == [6 * 7, 2]


def test_counts_are_of_one_launch():
    kernel = load("out[threadIdx.x] += 1; __syncthreads();", count=True)
    out = aligned(64)
    kernel.count_range("out", out)
    for blocks in (1, 2):
        kernel.launch((blocks,), (64,), (out,))
        expected = cuda_on_cpu.Traffic(2 * blocks, 256 * blocks, 8 * blocks)
        assert kernel.counts.reads["out"] == kernel.counts.writes["out"] == expected
    np.testing.assert_array_equal(out, 3)


def test_counting_pointers_behave_as_pointers():
    body = """
        Global<const float> from = in;
        Shared<const float> read = p;
        p[0] = from[1];
        p[1] = p[0];
        p[2] = (p[0] *= 3.0f) - *read;
        Global<float> to = out + 2;
        --to;
        to += 2;
        bool right = to != nullptr && to - out == 3 && out < to && from == in;
        *to = p[1] + max(p[2], from[0]) + fmaf(p[0], 2.0f, right ? 100.0f : 0.0f);
    """
    results = []
    for counting in (False, True):
        out, values = aligned(8), aligned(8)
        values[:2] = 5, 7
        kernel = load(
            f"SHARED_MEMORY(p);{body}",
            "Global<float> out, Global<const float> in",
            count=counting,
        )
        kernel.launch((1,), (1,), (out, values), 64)
        results.append(out[3])
    assert results == [7 + 5 + 42 + 100] * 2
    with pytest.raises(CudaOnCpuError, match=r"discards qualifiers|cannot convert"):
        load("auto later = out[0]; float v = later;", count=True)


# Races: two accesses, and what there has to be between them

RACES = {
    "read after write": ("p[tid] = tid", "float v = p[tid ^ {partner}]", True),
    "write after read": ("float v = p[tid ^ {partner}]", "p[tid] = tid", True),
    "write after write": ("p[tid] = tid", "p[tid ^ {partner}] = tid", True),
    "read by several": ("float v = p[tid & -2 * {partner}]",
                        "if (tid % (2 * {partner}) == 0) p[tid] = 1", True),
    "vectors": ("if (tid % 4 == 0) store4(p + tid, float4())",
                "float v = p[tid ^ {partner}]", True),
    "the same number": ("p[tid] = 1", "p[tid ^ {partner}] = 1", False),
    "only reads": ("float v = p[tid]", "float w = p[tid ^ {partner}]", False),
    "own": ("p[tid] = tid", "p[tid] += tid + {partner}", False),
}  # fmt: skip
CASES = [
    (case, partner, barrier)
    for case in RACES
    for partner in (8, 32)
    for barrier in ("", "__syncwarp()", "__syncthreads()")
]


@pytest.mark.parametrize("order", ORDERS[:3])
def test_races(order):
    bodies = [
        f"{RACES[case][0]};\n{barrier};\n{RACES[case][1]}".format(partner=partner)
        for case, partner, barrier in CASES
    ]
    body = f"SHARED_MEMORY(p); int tid = threadIdx.x;\n{one_of(bodies)}"
    kernel = load(body, "int which", count=True)
    kernel.order = order
    for which, (case, partner, barrier) in enumerate(CASES):
        enough = barrier == "__syncthreads()" or (barrier and partner == 8)
        if enough or not RACES[case][2]:
            kernel.launch((2,), (64,), (np.int32(which),), 256)
        else:
            message = r"race: .* at kernel.cu:[24], which thread .* at kernel.cu:[24], with no"
            with pytest.raises(CudaOnCpuError, match=message):
                kernel.launch((2,), (64,), (np.int32(which),), 256)


def test_counting_pointers_know_the_size_of_shared_memory():
    kernel = load("SHARED_MEMORY(p);\nfloat v = p[threadIdx.x];", count=True)
    with pytest.raises(CudaOnCpuError, match=r"reaches byte 64 of 64 .* at kernel.cu:3"):
        kernel.launch((1,), (32,), (np.zeros(1, np.float32),), 64)


# Compiled in other ways


def test_without_assembly():
    macros = {"CUDA_ON_CPU_UCONTEXT": 1}
    np.testing.assert_array_equal(
        run("__syncthreads(); out[threadIdx.x] = threadIdx.x;", threads=64, macros=macros),
        np.arange(64),
    )


SANITIZED = """
    import numpy as np
    import test_cuda_on_cpu as t

    out = np.zeros(64, np.float32)
    exchange = "float v = threadIdx.x; v += __shfl_xor_sync(~0u, v, 1); __syncthreads();"
    kernel = t.load("SHARED_MEMORY(p);" + exchange + "p[threadIdx.x] = v; out[threadIdx.x] = v;")
    kernel.launch((4,), (64,), (out,), 256)
    assert out[2] == 5
    bad = t.load("if (threadIdx.x == 5) return; __syncthreads();")
    for _ in range(2):
        try:
            bad.launch((1,), (64,), (out,))
        except t.CudaOnCpuError:
            pass
    kernel.launch((4,), (64,), (out,), 256)
    print("fine", flush=True)
    {wrong}
    print("unnoticed", flush=True)
"""


@pytest.mark.parametrize(
    ("wrong", "report"),
    [
        ("kernel.launch((4,), (64,), (out,), 252)", "AddressSanitizer: heap-buffer-overflow"),
        ("t.load('SHARED_MEMORY(p); out[0] = p[64];').launch((1,), (1,), (out,), 256)",
         "AddressSanitizer: heap-buffer-overflow"),
        ("t.load('out[64] = 1;').launch((1,), (1,), (out,))", "AddressSanitizer: heap-buffer"),
        ("t.load('out[0] = 1 << (int)out[2];').launch((1,), (1,), (np.float32([0, 0, 40]),))",
         "runtime error: shift exponent 40"),
    ],
    ids=["shared write", "shared read", "global write", "undefined"],
)  # fmt: skip
def test_sanitizers_see_wrong_accesses(wrong, report):
    env = os.environ | cuda_on_cpu.sanitized_environment()
    env["PYTHONPATH"] = str(Path(__file__).parent)
    script = textwrap.dedent(SANITIZED).format(wrong=wrong)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["fine"], done.stderr
    assert report in done.stderr
