"""The machine code of the CUDA kernels: what their inner loops issue and wait for; needs no GPU.

Compiles every kernel that a half-sweep can launch with NVRTC (``pip install nvidia-cuda-nvrtc``)
and disassembles it with nvdisasm (``pip install nvidia-cuda-nvdisasm``, or any CUDA toolkit; also
where the environment variable NVDISASM points). One line for each function: registers, bytes
spilled, shared memory, blocks that share a multiprocessor; of its hot loop, where the Gram grows,
the loads of factors that are in flight at once, the instructions for each multiply-add, and the
share of the float32 multiply-add peak that the resident blocks reach in it. What whole rows take is
predicted by gpu_model.py.

    python benchmarks/kernel_sass.py [--architecture 90] [--factors 64 128 256] [--nvrtc 13.0]
        [--tensor-cores]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import nvrtc
from kernel_resources import VARIANTS, occupancy

from gpu_als.backends.cupy.launch import Launch

BARRIERS = 6  # scoreboards of a warp
NO_BARRIER = 7

# Cycles from issue to result of what has no fixed latency, on Hopper. Luo et al., "Benchmarking and
# Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking" (2024), has most of them.
LATENCY = {"LDS": 30, "LDG": 290, "LDC": 40, "SHFL": 25, "MUFU": 30, "S2R": 30, "S2UR": 30}
LDG_FROM_MEMORY = 600
OTHER_LATENCY = 25
READ_LATENCY = 12  # until the operands of a store are read
BARRIER_CYCLES = 25

# Cycles of one multiprocessor for one instruction of one warp, by what executes it. Dense TF32
# products by mma.sync reach 63 % of the peak of 1,024 multiply-adds a cycle (ibid.).
PIPES = {"issue": 1 / 4, "fma": 1 / 4, "alu": 1 / 2, "special": 2.0, "tensor": 1 / 0.63}
_ALU = re.compile(r"I?ADD3|LOP3|I?SETP|[IF]SEL|SEL|LEA|SHF|F?I?MNMX|PRMT|IABS|POPC|PLOP3|FSETP")
_FMA = re.compile(r"FFMA|FMUL|FADD|IMAD")
# Lines of which all lanes of a warp read at most 32 words at once: see gram.cuh, dual_block.cu.
_BROADCAST = re.compile(r"left\[|right = load|load4\((column|row) \+ l\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction, with what its control bits say (Volta and later: bits 105 to 121)."""

    address: int
    name: str  # with modifiers, without its predicate
    operands: str
    lines: tuple[tuple[str, int], ...]  # of the source: file, number; then where that is inlined
    target: int | None  # of a branch
    predicated: bool
    stall: int  # cycles until the next may issue
    sets: int  # scoreboard that its result releases; NO_BARRIER for none
    reads: int  # scoreboard that reading its operands releases
    waits: int  # mask of scoreboards

    @property
    def opcode(self) -> str:
        """Name without modifiers."""
        return self.name.partition(".")[0]

    @property
    def source(self) -> str:
        """The line of the source that it comes from."""
        return source_line(self.lines[0])

    @property
    def bytes(self) -> int:
        """What a lane loads or stores."""
        wide = re.search(r"\.(64|128)\b", self.name)
        return int(wide[1]) // 8 if wide else 4


@dataclass
class Loop:
    """A loop, or a whole function; ``own`` are the instructions outside inner loops."""

    own: list[Instruction]
    inner: list[Loop] = field(default_factory=list)

    def walk(self) -> Iterable[Loop]:
        """Yield this loop and those inside."""
        yield self
        for loop in self.inner:
            yield from loop.walk()

    @property
    def multiplies(self) -> float:
        """FFMA; three products of tensor cores count as the 32 of each lane that they replace."""
        return sum({"FFMA": 1, "HMMA": 32 / 3}.get(each.opcode, 0) for each in self.own)


def find_disassembler() -> Path | None:
    """Return the path of nvdisasm; None where there is none."""
    named = os.environ.get("NVDISASM") or shutil.which("nvdisasm")
    if named:
        return Path(named)
    packages = importlib.util.find_spec("nvidia")
    folders = (packages.submodule_search_locations if packages else None) or ()
    found = (path for each in folders for path in Path(each).glob("*/bin/nvdisasm*"))
    return next(found, None)


_LINE = re.compile(r'//## File "(?:[^"]*/)?([^"/]+)", line (\d+)')
_CODE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?(\S+)([^;]*);\s+/\* 0x([0-9a-f]{16}) \*/")
_UPPER = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


def disassemble(cubin: bytes) -> dict[str, list[Instruction]]:
    """Return the instructions of each entry function, in the order of their addresses."""
    disassembler = find_disassembler()
    if disassembler is None:
        raise FileNotFoundError("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [disassembler, "-gi", "-c", "-hex", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    functions: dict[str, list[Instruction]] = {}
    for part in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        functions[re.split(r"[,\s]", part, maxsplit=1)[0]] = _read(part.splitlines())
    return functions


def _read(lines: Sequence[str]) -> list[Instruction]:
    """Read one function."""
    labels: dict[str, int] = {}
    found = []
    chain: tuple[tuple[str, int], ...] = ()
    waiting: list[str] = []
    for i, text in enumerate(lines):
        if at := _LINE.search(text):
            chain = (*(chain if "inlined at" in lines[i - 1] else ()), (at[1], int(at[2])))
        elif label := _LABEL.match(text):
            waiting.append(label[1])
        elif code := _CODE.search(text):
            upper = _UPPER.match(lines[i + 1])
            assert upper, lines[i + 1]
            labels |= dict.fromkeys(waiting, int(code[1], 16))
            waiting = []
            found.append((code, int(upper[1], 16) >> 41, chain))
    return [
        Instruction(
            address=int(code[1], 16),
            name=code[3],
            operands=code[4],
            lines=chain,
            target=labels.get(to[1]) if (to := _TARGET.search(code[4])) else None,
            predicated=code[2] is not None,
            stall=control & 15,
            sets=control >> 5 & 7,
            reads=control >> 8 & 7,
            waits=control >> 11 & 63,
        )
        for code, control, chain in found
    ]


def loops_of(code: Sequence[Instruction]) -> Loop:
    """Return a function as a tree of loops: stretches that a branch leads back to the start of.

    What follows the last exit is seldom run (slow ways of divergent warps), and left out.
    """
    last = max(i for i, each in enumerate(code) if each.opcode == "EXIT" and not each.predicated)
    code = code[: last + 1]
    ends: dict[int, int] = {}
    for each in code:
        if each.opcode == "BRA" and each.target is not None and each.target <= each.address:
            ends[each.target] = max(ends.get(each.target, 0), each.address)
    root = Loop([])
    stack, stops = [root], [1 << 62]
    for each in code:
        while each.address > stops[-1]:
            stack.pop()
            stops.pop()
        if each.address in ends:
            loop = Loop([])
            stack[-1].inner.append(loop)
            stack.append(loop)
            stops.append(min(ends[each.address], stops[-1]))
        stack[-1].own.append(each)
    return root


def cycles_alone(code: Sequence[Instruction], ldg: float = LATENCY["LDG"]) -> float:
    """Return how long one warp takes for a pass over these instructions in a steady state.

    Every instruction issues once its scoreboards are released and the stall of the one before it is
    over; ``ldg`` is the latency of loads from global memory.
    """
    ready, time, before = [0.0] * BARRIERS, 0.0, 0.0
    for turn in range(2):
        if turn:
            before = time
        for each in code:
            for barrier in range(BARRIERS):
                if each.waits >> barrier & 1:
                    time = max(time, ready[barrier])
            latency = ldg if each.opcode == "LDG" else LATENCY.get(each.opcode, OTHER_LATENCY)
            if each.sets < BARRIERS:
                ready[each.sets] = max(ready[each.sets], time + latency)
            if each.reads < BARRIERS:
                ready[each.reads] = max(ready[each.reads], time + READ_LATENCY)
            time += max(each.stall, 1) + BARRIER_CYCLES * (each.opcode == "BAR")
    return time - before


def pipe_cycles(code: Sequence[Instruction]) -> Counter[str]:
    """Return what one warp's pass over these instructions takes of each pipe of a multiprocessor.

    In cycles: ``shared`` by wavefronts of 128 bytes, ``l2`` by bytes from global memory, at
    :data:`L2_BYTES` a cycle.
    """
    used: Counter[str] = Counter()
    for each in code:
        used["issue"] += PIPES["issue"]
        if each.opcode == "HMMA":
            used["tensor"] += PIPES["tensor"]
        elif each.opcode in ("MUFU", "SHFL"):
            used["special"] += PIPES["special"] if each.opcode == "MUFU" else 1
        elif _FMA.match(each.opcode):
            used["fma"] += PIPES["fma"]
        elif _ALU.match(each.opcode):
            used["alu"] += PIPES["alu"]
        elif each.opcode in ("LDS", "STS"):
            alike = any(_BROADCAST.search(source_line(line)) for line in each.lines)
            used["shared"] += 1 if alike else each.bytes / 4
        elif each.opcode == "LDG":
            used["l2"] += 32 * each.bytes / L2_BYTES
    return used


L2_BYTES = 22.0
"""Of one multiprocessor in a cycle, when all read: 5.5 TB/s over 132 of 1.9 GHz."""


@functools.cache
def _source(file: str) -> list[str]:
    folder = Path(__file__).parents[1] / "gpu_als/backends/cupy/kernels"
    return (folder / file).read_text("utf-8").splitlines() if (folder / file).exists() else []


def source_line(line: tuple[str, int]) -> str:
    """Return the text of a line of a kernel's source; nothing where it is of another file."""
    lines = _source(line[0])
    return lines[line[1] - 1].strip() if 0 < line[1] <= len(lines) else ""


def loads_in_flight(code: Sequence[Instruction]) -> int:
    """Return the most loads from global memory that are under way at once in a loop.

    A load is under way until an instruction waits for its scoreboard. Two passes, so that loads
    of the next turn count.
    """
    most, pending = 0, Counter[int]()
    for each in [*code, *code]:
        for barrier in range(BARRIERS):
            if each.waits >> barrier & 1:
                pending[barrier] = 0
        if each.opcode == "LDG":
            pending[each.sets] += 1
            most = max(most, pending.total())
    return most


_GRAM = re.compile(r"sum\[(h\]\[)?a\]\[b\] = add_dot|to\[[01]\]\.[xy] = |mma_tf32")


def hot_loop(code: Sequence[Instruction]) -> Loop:
    """Return the loop that adds most to a Gram matrix; else the one that multiplies most."""

    def share(loop: Loop) -> tuple[int, float]:
        texts = ({source_line(line) for line in each.lines} for each in loop.own)
        gram = sum(any(_GRAM.search(text) for text in some) for some in texts)
        return gram, loop.multiplies

    return max(loops_of(code).walk(), key=share)


def gathers(code: Sequence[Instruction], hot: Loop) -> list[Instruction]:
    """Return the loop that loads rows of factors for the hot one: around it, or the busiest."""
    loading = [
        loop for loop in loops_of(code).walk()
        if any(each.opcode == "LDG" and each.bytes >= 8 for each in loop.own)
    ]  # fmt: skip
    around = [loop for loop in loading if hot.own[0] in flat(loop)]
    if around[1:]:  # beyond the function itself
        return flat(around[-1])
    return max((flat(loop) for loop in loading), key=loads_in_flight, default=[])


def flat(loop: Loop) -> list[Instruction]:
    """Return the instructions of a loop and of those inside, by address."""
    found = [each for one in loop.walk() for each in one.own]
    return sorted(found, key=lambda each: each.address)


@functools.cache
def functions_of(
    launch: Launch, architecture: int, version: nvrtc.Version | None = None
) -> dict[str, list[Instruction]]:
    """Compile and disassemble the specialisation that a launch asks for."""
    return disassemble(nvrtc.cubin(launch, architecture, version))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, choices=sorted(nvrtc.DEVICES), default=90)
    parser.add_argument("--factors", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--tensor-cores", action="store_true", help="also 3xTF32")
    versions = {"{}.{}".format(*version): version for version in nvrtc.versions()}
    parser.add_argument("--nvrtc", choices=versions, default=[*versions][-1] if versions else None)
    arguments = parser.parse_args()
    if not versions or find_disassembler() is None:
        parser.exit(
            message="needs NVRTC and nvdisasm: pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm\n"
        )
    limits, version = nvrtc.DEVICES[arguments.architecture], versions[arguments.nvrtc]
    left_out = VARIANTS | (set() if arguments.tensor_cores else {"TENSOR_CORES"})
    print(f"NVRTC {arguments.nvrtc}, sm_{arguments.architecture}")
    for k in arguments.factors:
        print(
            f"\n{k} factors\nfunction      registers spilled shared KB blocks | hot loop: loads in "
            "flight  instructions / FMA  of FMA peak"
        )
        for launch in nvrtc.specialisations(limits, [k]).values():
            if left_out & dict(launch.macros).keys():
                continue
            build = nvrtc.build(launch, limits.architecture, version)
            for name, code in functions_of(launch, limits.architecture, version).items():
                found = build.functions[name]
                shared = dict(launch.functions).get(name, launch.shared_bytes)
                fits = occupancy(launch, found.registers, shared, limits)
                blocks = min(fits[f"by_{what}"] for what in ("registers", "shared", "threads"))
                loop = hot_loop(code)
                macros = " ".join(f"{key}={value}" for key, value in launch.macros)
                print(
                    f"{name:13} {found.registers:9} {found.spill_bytes:7} {shared / 1024:9.1f} "
                    f"{blocks:6} | {loads_in_flight(gathers(code, loop)):25} "
                    f"{len(loop.own) / max(1, loop.multiplies):19.2f} "
                    f"{peak_share(loop, launch.block // 32, blocks):11.0%}   {macros}",
                    flush=True,
                )


def peak_share(loop: Loop, warps: int, blocks: int) -> float:
    """Return the share of the float32 multiply-add peak that resident blocks reach in a loop."""
    busy = blocks * warps * max(pipe_cycles(loop.own).values())
    cycles = max(busy, cycles_alone(loop.own))
    return blocks * warps * loop.multiplies * PIPES["fma"] / cycles


if __name__ == "__main__":
    main()
