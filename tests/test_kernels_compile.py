"""Every kernel that a plan can launch, compiled for every architecture; no GPU takes part."""

import nvrtc
import pytest

from gpu_als.backends.cupy.launch import HALF_SWEEP
from gpu_als.backends.cupy.nvrtc import OPTIONS, define, source_of
from gpu_als.backends.cupy.rhs_only import COLUMNS

pytestmark = pytest.mark.skipif(
    nvrtc.library_path() is None, reason="needs the package nvidia-cuda-nvrtc"
)

REGISTERS = 65536  # of a multiprocessor, on every architecture
VARIANTS = {"SIGNED", "STORED_HALF"}


def alike(architecture):
    """Return the architectures whose blocks have as much memory, and so the same launches."""

    def memory(of):
        limits = nvrtc.DEVICES[of]
        return limits.shared_per_block, limits.shared_per_multiprocessor

    return [each for each in nvrtc.DEVICES if memory(each) == memory(architecture)]


def chosen(architecture):
    """Return the launches whose kernels are compiled for an architecture.

    All there are would take half an hour (benchmarks/kernel_resources.py has them all). Here each
    size meets the tensor cores once, with the solver that takes the most registers; architectures
    with the same launches share them out; and every variant comes in one size, another for each
    architecture.
    """
    plain, tensor_cores, variants = [], {}, {}
    for launch in nvrtc.specialisations(nvrtc.DEVICES[architecture]).values():
        macros = dict(launch.macros)
        if VARIANTS & macros.keys():
            kind = launch.kernel, *sorted(VARIANTS & macros.keys())
            variants.setdefault(kind, []).append(launch)
        elif "TENSOR_CORES" in macros:
            size = launch.kernel, macros["EDGE"], macros["UNITS"]
            tensor_cores[size] = max(
                tensor_cores.get(size, launch), launch, key=lambda one: dict(one.macros)["SOLVER"]
            )
        else:
            plain.append(launch)
    family = alike(architecture)
    share = [*plain, *tensor_cores.values()][family.index(architecture) :: len(family)]
    devices = sorted(nvrtc.DEVICES)
    spread = [
        launches[(devices.index(architecture) + n) % len(devices) * len(launches) // len(devices)]
        for n, launches in enumerate(variants.values())
    ]
    return [*share, *spread]


@pytest.fixture(scope="module", params=nvrtc.DEVICES, ids=lambda device: f"sm_{device}")
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def builds(architecture):
    launches = chosen(architecture)
    return list(zip(launches, nvrtc.build_all(launches, architecture), strict=True))


@pytest.fixture(scope="module")
def functions(builds):
    """Every entry function: its name with the macros, its launch, its resources."""
    return [
        (f"{name} {' '.join(define(launch.macros))}", launch, resources)
        for launch, build in builds
        for name, resources in build.functions.items()
    ]


def test_every_size_and_every_macro_is_compiled(architecture):
    everything = nvrtc.specialisations(nvrtc.DEVICES[architecture]).values()
    compiled_here = [launch for each in alike(architecture) for launch in chosen(each)]
    options = {*VARIANTS, "TENSOR_CORES", "BLOCKS"}  # the rest is the size

    def sizes(launches):
        return {
            (one.kernel, *(pair for pair in one.macros if pair[0] not in options))
            for one in launches
        }

    def macros(launches):
        return {(one.kernel, pair) for one in launches for pair in one.macros}

    assert sizes(compiled_here) == sizes(everything)
    assert macros(compiled_here) == macros(everything)
    assert {one.kernel for one in everything} == {"dual_warp", "dual_block", "primal", "split"}


def test_no_warnings(builds):
    warnings = "\n".join(build.warnings for _, build in builds if build.warnings)
    assert not warnings, warnings


def test_every_function_is_there(builds):
    split = {"split_gram", "split_solve", "split_check", "split_finish"}
    for launch, build in builds:
        assert build.functions.keys() == (split if launch.kernel == "split" else {launch.kernel})


def test_registers_suffice(functions):
    """Nothing is spilled to local memory, and no array has to live there."""
    spilled = "\n".join(
        f"{name}: {found.spill_bytes} bytes spilled, {found.stack_bytes} in local memory"
        for name, _, found in functions
        if found.spill_bytes or found.stack_bytes
    )
    assert not spilled, spilled


def test_promised_blocks_fit_a_multiprocessor(functions):
    for name, launch, found in functions:
        registers = found.registers + -found.registers % 8  # as they are given out
        blocks = dict(launch.macros).get("BLOCKS", 1)
        assert 0 < blocks * launch.block * registers <= REGISTERS, name


def test_shared_memory_is_all_dynamic(functions):
    """What launches ask for is all there is."""
    assert [name for name, _, found in functions if found.shared_bytes] == []


def check_constants(source, options, assertions):
    """Have the compiler check expressions; nothing is generated."""
    asserted = "".join(f'static_assert({each}, "");\n' for each in assertions)
    nvrtc.compile_for(source + asserted, [*options, "--fdevice-syntax-only"], 90)


def test_layout_of_half_sweep():
    """``struct HalfSweep`` and its mirror in launch.py."""
    fields = HALF_SWEEP.fields.items()
    check_constants(
        source_of("dual_warp"), [*OPTIONS, "-DTILES=1", "-DWARPS=1"],
        [
            f"sizeof(HalfSweep) == {HALF_SWEEP.itemsize}",
            *(f"__builtin_offsetof(HalfSweep, {name}) == {at[1]}" for name, at in fields),
            *(f"sizeof(HalfSweep::{name}) == {at[0].itemsize}" for name, at in fields),
        ],
    )  # fmt: skip


def test_shared_memory_of_primal_kernels():
    """The formulas of launch.py and the constants of the kernels."""
    for launch in nvrtc.specialisations(nvrtc.DEVICES[90]).values():
        if launch.kernel not in ("primal", "split") or VARIANTS & dict(launch.macros).keys():
            continue
        check_constants(
            source_of(launch.kernel), [*OPTIONS, *define(launch.macros)],
            [f"4 * kSharedFloats == {launch.shared_bytes}", f"THREADS == {launch.block}"],
        )  # fmt: skip


# What the tests above look for is seen where it is


def compiled(body, bounds=""):
    head = f'extern "C" __global__ void {bounds} kernel(float* p, int n)'
    return nvrtc.compile_for(f"{head} {{\n{body}\n}}", OPTIONS, 90)


def test_resources_are_seen():
    build = compiled("__shared__ float s[25]; s[n] = *p; __syncthreads(); *p = s[n + 1];")
    assert build.warnings == ""
    found = build.functions["kernel"]
    assert 0 < found.registers < 32
    assert found == nvrtc.Resources(found.registers, spill_bytes=0, stack_bytes=0, shared_bytes=100)


def test_spills_are_seen():
    sums = "float a[80];\n#pragma unroll\nfor (int i = 0; i < 80; ++i) a[i] = p[i * n];\n"
    use = "for (int j = 0; j < n; ++j)\n#pragma unroll\nfor (int i = 0; i < 80; ++i) "
    keep = "a[i] = a[i] * a[(i + 1) % 80] + p[j];\n#pragma unroll\n"
    store = "for (int i = 0; i < 80; ++i) p[i * n] = a[i];"
    build = compiled(sums + use + keep + store, "__launch_bounds__(1024, 2)")
    found = build.functions["kernel"]
    assert found.registers == 32
    assert found.spill_bytes > 0
    assert found.stack_bytes > 0


def test_local_memory_of_called_functions_is_seen():
    source = """
    __device__ __noinline__ float picked(float* p, int n) {
        float a[64];
        for (int i = 0; i < 64; ++i) a[i] = p[i];
        float sum = 0.f;
        for (int i = 0; i < 64; ++i) sum += a[i * n % 64];
        return sum;
    }
    extern "C" __global__ void kernel(float* p, int n) { *p = picked(p, n); }
    extern "C" __global__ void other(float* p, int n) { *p = 1.f; }
    """
    functions = nvrtc.compile_for(source, OPTIONS, 90).functions
    assert functions.keys() == {"kernel", "other"}
    assert functions["kernel"].stack_bytes >= 256
    assert functions["other"].stack_bytes == 0


def test_warnings_are_seen():
    assert '"never" was declared but never referenced' in compiled("int never;").warnings


def test_errors_are_raised():
    with pytest.raises(nvrtc.CompileError, match='identifier "nothing" is undefined'):
        compiled("*p = nothing;")
    with pytest.raises(nvrtc.CompileError, match="assertion failed"):
        check_constants("struct S { int a, b; };", OPTIONS, ["sizeof(S) == 4"])


@pytest.mark.parametrize(
    "macros", [(), (("DOUBLE", 1),), (("WIDE", 1),), (("DOUBLE", 1), ("WIDE", 1))], ids=str
)
@pytest.mark.parametrize("warps", [1, 16])
def test_sums_of_linear_entries(architecture, warps, macros):
    options = [*OPTIONS, *define((("WARPS", warps), *macros))]
    check_constants(source_of("linear"), options, [f"kPass == {COLUMNS}"])
    build = nvrtc.compile_for(source_of("linear"), options, architecture)
    found = build.functions["linear"]
    assert not build.warnings
    assert found.spill_bytes == found.stack_bytes == found.shared_bytes == 0
    assert 32 * warps * found.registers <= REGISTERS
