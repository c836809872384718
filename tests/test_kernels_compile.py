"""Every kernel that plans launch, compiled for every kind of architecture; no GPU takes part."""

import re

import nvrtc
import pytest

from gpu_als.backends.cupy.launch import HALF_SWEEP
from gpu_als.backends.cupy.nvrtc import OPTIONS, define, source_of
from gpu_als.backends.cupy.rhs_only import COLUMNS

pytestmark = pytest.mark.skipif(
    nvrtc.newest() is None, reason="needs the package nvidia-cuda-nvrtc"
)

REGISTERS = 65536  # of a multiprocessor, on every architecture
VARIANTS = {"SIGNED", "STORED_HALF"}
OLDER = ((12, 9), (13, 0))


def registers_given(launch):
    """Return the registers that a thread gets if as many blocks as promised share them."""
    return min(255, REGISTERS // (dict(launch.macros).get("BLOCKS", 1) * launch.block))


def size_of(launch):
    """Return how large a launch's systems are."""
    macros = dict(launch.macros)
    return macros.get("EDGE", 8) * macros.get("TILES", 2 * macros.get("UNITS", 0))


def tightest(architecture):
    """Return the launches that are the most likely to run out of registers.

    Of each kernel that holds a system in registers, the largest of those whose threads get the
    fewest, on tensor cores where there are any.
    """
    kernels = {}
    for launch in nvrtc.specialisations(nvrtc.DEVICES[architecture]).values():
        macros = dict(launch.macros)
        plain = not VARIANTS & macros.keys() and not macros.get("SOLVER")
        if plain and launch.kernel in ("primal", "dual_block"):
            kernels.setdefault(launch.kernel, []).append(launch)
    return [
        min(
            launches,
            key=lambda one: (
                registers_given(one), -size_of(one), "TENSOR_CORES" not in dict(one.macros),
            ),
        )
        for launches in kernels.values()
    ]  # fmt: skip


def chosen():
    """Return launches for compute capability 9.0 that have every kernel, block and macro once.

    The largest systems of each block, and the smallest with each macro; of split rows, whose
    functions are parts of ``primal``, one. All there are, for every architecture, would take half
    an hour; benchmarks/kernel_resources.py has them all.
    """
    found = {}
    launches = sorted(nvrtc.specialisations(nvrtc.DEVICES[90]).values(), key=size_of)
    for launch in launches:
        macros = dict(launch.macros)
        extra = [name for name in (*VARIANTS, "TENSOR_CORES") if name in macros]
        extra += [f"SOLVER {macros['SOLVER']}"] if macros.get("SOLVER") else []
        if not extra:
            block = () if launch.kernel == "split" else (macros.get("EDGE"), macros.get("BLOCKS"))
            found[launch.kernel, block] = launch
        elif len(extra) == 1 and launch.kernel != "split":
            found.setdefault((launch.kernel, extra[0]), launch)
    return list(found.values())


# What is compiled: the newest NVRTC for every architecture that differs in its instructions or
# its memory (8.6 and 8.9 are 8.0 with the memory of 12.0), and older ones for 9.0.
TARGETS = [*((architecture, None) for architecture in (75, 80, 90, 100, 120))]
TARGETS += [(90, old) for old in OLDER]


def name_of(target):
    architecture, version = target
    return f"sm_{architecture}" + ("" if version is None else " by {}.{}".format(*version))


@pytest.fixture(scope="module", params=TARGETS, ids=name_of)
def builds(request):
    architecture, version = request.param
    if version is not None and version not in nvrtc.versions():
        pytest.skip("needs NVRTC {}.{} in a folder of GPU_ALS_NVRTC".format(*version))
    launches = tightest(architecture)
    if (architecture, version) == (90, None):
        launches = list(dict.fromkeys(launches + chosen()))
    return list(zip(launches, nvrtc.build_all(launches, architecture, version), strict=True))


@pytest.fixture(scope="module")
def functions(builds):
    """Every entry function: its name with the macros, its launch, its resources."""
    return [
        (f"{name} {' '.join(define(launch.macros))}", launch, resources)
        for launch, build in builds
        for name, resources in build.functions.items()
    ]


def test_no_warnings(builds):
    warnings = "\n".join(build.warnings for _, build in builds if build.warnings)
    assert not warnings, warnings


def test_every_function_is_there(builds):
    split = {"split_gram", "split_solve"}
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
    constants = {
        "primal": "kSharedFloats", "split_gram": "kGramFloats", "split_solve": "kSolveFloats",
    }  # fmt: skip
    for launch in nvrtc.specialisations(nvrtc.DEVICES[90]).values():
        if launch.kernel not in ("primal", "split") or VARIANTS & dict(launch.macros).keys():
            continue
        functions = launch.functions or [(launch.kernel, launch.shared_bytes)]
        check_constants(
            source_of(launch.kernel), [*OPTIONS, *define(launch.macros)],
            [
                *(f"4 * {constants[name]} == {size}" for name, size in functions),
                f"THREADS == {launch.block}",
            ],
        )  # fmt: skip


# Loads that wait for nothing


def multiplies_meanwhile(function):
    """Return, for each load of factors in a function's PTX, the multiply-adds before its first use.

    Lines are read in order; what is copied to another register is followed there.
    """
    lines = function.splitlines()
    found = []
    for at, line in enumerate(lines):
        load = re.search(r"ld\.global(?:\.nc)?\.v4\.f32\s+{(.+)}, ", line)
        if not load:
            continue
        held, multiplied = set(load[1].split(", ")), 0
        for later in lines[at + 1 :]:
            name, *operands = re.findall(r"[%\w.]+", later) or [""]
            if not held.isdisjoint(operands[1:]):
                if name != "mov.f32":
                    break
                held.add(operands[0])
            multiplied += name == "fma.rn.ftz.f32"
        found.append(multiplied)
    return found


def ptx_of(launch, function, patch=("", "")):
    source = source_of(launch.kernel)
    assert source.count(patch[0]) == 1 or patch[0] == ""
    text = nvrtc.ptx_for(source.replace(*patch), [*OPTIONS, *define(launch.macros)], 90)
    return text.split(f".entry {function}(")[1].split(".entry")[0]


def primal_launch(k):
    (launch,) = (
        launch
        for (kernel, macros), launch in nvrtc.specialisations(nvrtc.DEVICES[90], [k]).items()
        if kernel == "split"
        and dict(macros)["SOLVER"] == 0
        and not {"TENSOR_CORES", *VARIANTS} & dict(macros).keys()
    )
    return launch


@pytest.mark.parametrize("k", [64, 128, 256])
def test_the_next_tile_is_loaded_before_the_gram_grows(k):
    """And its numbers are first looked at behind the multiply-adds of this one."""
    launch = primal_launch(k)
    units = dict(launch.macros)["UNITS"]
    of_an_entry = 4 * units * (units + 1) // 2
    tile_quads = (16 if k <= 128 else 8) * k // 4
    meanwhile = multiplies_meanwhile(ptx_of(launch, "split_gram"))
    # Loads of a strip's first tile have nothing to wait behind.
    assert sum(count >= of_an_entry for count in meanwhile) == tile_quads // launch.block


def test_loads_that_are_waited_for_are_seen():
    patch = "? load_factors(problem, index[i], c)", "? load_factors(problem, index[i], c) * 2.f"
    meanwhile = multiplies_meanwhile(ptx_of(primal_launch(128), "split_gram", patch))
    assert meanwhile
    assert max(meanwhile) == 0


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
def test_sums_of_linear_entries(warps, macros):
    options = [*OPTIONS, *define((("WARPS", warps), *macros))]
    check_constants(source_of("rhs_only"), options, [f"kPass == {COLUMNS}"])
    build = nvrtc.compile_for(source_of("rhs_only"), options, 90)
    found = build.functions["rhs_only"]
    assert not build.warnings
    assert found.spill_bytes == found.stack_bytes == found.shared_bytes == 0
    assert 32 * warps * found.registers <= REGISTERS
