"""Reads the PTX of one kernel and encodes it for the machine.

Registers of PTX are written once each, by the thousand. They are given to as few as hold them
(linear scan over the lines in which their value is needed), so that a warp's fit a cache. What an
instruction does is not known here: the machine looks it up by its name.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

LANES = 32
UNIT = 4 * LANES
"""Bytes of a register of up to 32 bits, for all lanes of a warp; of 64 bits it takes twice that."""
WIDE_ADDRESS = 16
"""Added to the words used where an address in shared memory comes as 64 bits."""
SHARED_BASE = 1024
"""The address of dynamic shared memory."""
SPECIAL = tuple(f"%{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz")
"""Registers that are there from the start, in the machine's order."""
FIELDS = 20
"""Numbers of an instruction: operation, guard, count, immediate, words used, and its operands."""
ACCESSORS = frozenset({"memory.cuh"})
"""Files whose lines say what is done to memory, but not by whom."""

_ENTRY = r"\.entry {}\((.*?)\)[^{{]*\n\{{\n"
_PARAMETER = re.compile(r"\.param (?:\.align (\d+) )?\.[a-z](\d+) (\w+)(?:\[(\d+)\])?")
_REGISTERS = re.compile(r"\.reg \.[a-z]+(\d*)\s+(%\w+?)(?:<(\d+)>)?;")
_LABEL = re.compile(r"(\$\w+):")
_LOCATION = re.compile(r"\.loc\s+(\d+) (\d+) \d+(?:, function_name \S+, inlined_at (\d+) (\d+))?")
_USED_BYTES = re.compile(r'\.pragma "used_bytes_mask (\w+)"')
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*?)\s*;")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_ADDRESS = re.compile(r"\[([%\w$.]+?)(?:\+(-?\d+))?\]")
_BITS = re.compile(r"[a-z](\d+)")
# What these do does not depend on the sign or the kind of their operands.
_BITWISE = frozenset({"add", "sub", "mov", "selp", "mul.lo", "mad.lo", "shl"})
_SEVERAL_RESULTS = frozenset({"shfl", "mov", "mma"})


class DecodeError(ValueError):
    """PTX that is not understood."""


@dataclass(frozen=True)
class Program:
    """A kernel, as the machine takes it.

    Attributes
    ----------
    operations : tuple of str
        The names that ``code`` refers to.
    code : int32 array, shape (n, FIELDS)
        Instructions. Registers are their offset in bytes, constants the complement of theirs.
    constants : bytes
    register_bytes : int
        Of a warp.
    parameter_sizes : tuple of int
        Bytes.
    places : tuple of str
        ``file:line`` of each instruction, seen from outside of :data:`ACCESSORS`.
    """

    operations: tuple[str, ...]
    code: np.ndarray
    constants: bytes
    register_bytes: int
    parameter_sizes: tuple[int, ...]
    places: tuple[str, ...]


@dataclass
class _Instruction:
    operation: str
    guard: int | None  # register
    negated: bool
    reads: list[int]
    writes: list[int]
    count: int = 0
    immediate: int = 0
    used: int = 15
    label: str | None = None


@dataclass
class _Decoder:
    """What is known of a kernel so far. Registers are numbered; constants are complements."""

    parameters: dict[str, int]
    shared: set[str]
    bits: list[int] = field(default_factory=lambda: [32] * len(SPECIAL))
    names: list[dict[str, int]] = field(
        default_factory=lambda: [{name: i for i, name in enumerate(SPECIAL)}]
    )
    constants: bytearray = field(default_factory=bytearray)
    known: dict[tuple[int, int], int] = field(default_factory=dict)

    def declare(self, bits: str, name: str, count: str | None) -> None:
        names = [name] if count is None else [f"{name}{i}" for i in range(int(count))]
        for each in names:
            self.names[-1][each] = len(self.bits)
            self.bits.append(int(bits or 1))

    def register(self, name: str) -> int:
        for scope in reversed(self.names):
            if name in scope:
                return scope[name]
        raise DecodeError(f"unknown register {name}")

    def constant(self, value: int, bits: int) -> int:
        key = value & (1 << bits) - 1, bits
        if key not in self.known:
            self.known[key] = ~len(self.constants)
            one = key[0].to_bytes(8, "little")[: 8 if bits == 64 else 4]
            one = one[:2] * 2 if bits == 16 else one
            self.constants += one * LANES
        return self.known[key]

    def operand(self, text: str, bits: int) -> int:
        if text[0] == "%":
            return self.register(text)
        if text[:2] in ("0f", "0F", "0d", "0D"):
            return self.constant(int(text[2:], 16), bits)
        if text in self.parameters:
            return self.constant(self.parameters[text], 64)
        if text in self.shared:
            return self.constant(SHARED_BASE, bits)
        try:
            return self.constant(int(text, 0), bits)
        except ValueError:
            raise DecodeError(f"unknown operand {text}") from None

    def instruction(self, negated: str, guard: str | None, name: str, rest: str) -> _Instruction:
        head, *kinds = name.split(".")
        found = _Instruction(name, self.register(guard) if guard else None, bool(negated), [], [])
        texts = _OPERAND.findall(rest)
        bits = int(m[1]) if (m := _BITS.fullmatch(kinds[-1] if kinds else "")) else 32
        lists = [re.findall(r"[^\s,{}|]+", text) for text in texts]
        if head == "bra":
            found.operation, found.label = "bra", rest
        elif head in ("ld", "st"):
            address, values = (texts[1], lists[0]) if head == "ld" else (texts[0], lists[1])
            base, offset = _ADDRESS.fullmatch(address).groups()  # type: ignore[union-attr]
            space = kinds[0]
            found.reads = [self.operand(base, 32 if space == "shared" else 64)]
            if found.reads[0] >= 0 and self.bits[found.reads[0]] == 64:
                found.used += WIDE_ADDRESS
            found.operation = ".".join(
                [head, space, *(k for k in kinds[1:-1] if k[0] != "v" and k != "nc"), str(bits)]
            )
            found.count, found.immediate = len(values), int(offset or 0)
            registers = [self.operand(value, bits) for value in values]
            held = {bits} | {self.bits[one] for one in registers if one >= 0}
            if len(held) > 1:  # the register is wider, and its type says how to fill it
                found.operation += f".as.{kinds[-1][0]}{max(held)}"
            (found.writes if head == "ld" else found.reads).extend(registers)
        elif head == "bar" and kinds[0] != "warp":
            # The barrier has a number, of which only 0 is used.
            number = lists[-2] if kinds[0] == "red" else lists[0]
            if number != ["0"]:
                raise DecodeError(f"barrier {number}")
            if kinds[0] == "red":
                found.writes, found.reads = (
                    [self.register(lists[0][0])],
                    [self.register(lists[2][0])],
                )
        else:
            if head == "mov" and len(lists[0]) == 2:
                found.operation = f"unpack.{bits}"
            elif head == "mov" and len(lists[1]) == 2:
                found.operation = f"pack.{bits}"
            elif head == "cvta":
                found.operation = "mov.64"
            elif (kind := ".".join([head, *kinds[:-1]])) in _BITWISE and kinds[-1][0] != "f":
                found.operation = f"{kind}.{bits if kinds[-1] != 'pred' else 'pred'}"
            elif kind in ("mov", "selp"):
                found.operation = f"{kind}.{bits}"
            if head not in ("bar", "ret"):
                found.writes = [self.operand(text, bits) for text in lists.pop(0)]
            if len(found.writes) > 1 and head not in _SEVERAL_RESULTS:
                raise DecodeError("more than one result")
            narrow = {"shl": 1, "shr": 1, "bfi": 2}.get(head, len(lists))  # amounts are 32 bits
            for i, group in enumerate(lists):
                found.reads += [self.operand(t, bits if i < narrow else 32) for t in group]
            found.count = len(found.writes)
        return found


def decode(ptx: str, entry: str) -> Program:
    """Encode one kernel of a PTX module.

    Raises
    ------
    DecodeError
        It is not there, or has something that is not understood.
    """
    found = re.search(_ENTRY.format(entry), ptx, re.DOTALL)
    if found is None:
        raise DecodeError(f"there is no kernel {entry}")
    parameters, sizes, at = {}, [], 0
    for align, bits, name, count in _PARAMETER.findall(found[1]):
        one = int(bits) // 8
        at += -at % int(align or one)
        parameters[name] = at
        sizes.append(one * int(count or 1))
        at += sizes[-1]
    files = dict(re.findall(r'\.file\s+(\d+) "(?:[^"]*/)?([^"/]+)"', ptx))
    decoder = _Decoder(parameters, set(re.findall(r"\.extern \.shared .*? (\w+)\[\]", ptx)))
    instructions: list[_Instruction] = []
    places: list[str] = []
    labels: dict[str, int] = {}
    place, used = "?", WIDE_ADDRESS | 15
    for line in ptx[found.end() :].splitlines():
        line = line.partition("//")[0].strip()
        if one_of := _INSTRUCTION.fullmatch(line) if line[:1] not in (".", "$", "{", "}") else None:
            negated, guard, name, rest = one_of.groups()
            try:
                instructions.append(decoder.instruction(negated, guard, name, rest))
            except (DecodeError, AttributeError, IndexError) as error:
                raise DecodeError(f"{line} ({place}): {error}") from error
            instructions[-1].used &= used
            used = WIDE_ADDRESS | 15
            places.append(place)
        elif at_line := _LOCATION.match(line):
            file, number, outer_file, outer_number = at_line.groups()
            if files[file] in ACCESSORS and outer_file:
                file, number = outer_file, outer_number
            place = f"{files[file]}:{number}"
        elif label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif line == "{":
            decoder.names.append({})
        elif line == "}":
            decoder.names.pop()
            if not decoder.names:
                break
        elif declared := _REGISTERS.match(line):
            decoder.declare(*declared.groups())
        elif mask := _USED_BYTES.match(line):
            bytes_used = int(mask[1], 0)
            used = WIDE_ADDRESS | sum(1 << i for i in range(4) if bytes_used >> 4 * i & 15)
        elif line and not line.startswith(".pragma"):
            raise DecodeError(line)
    for each in instructions:
        if each.label is not None:
            each.immediate = labels[each.label]
    offsets, register_bytes = _allocate(instructions, decoder.bits)
    operations = tuple(dict.fromkeys(each.operation for each in instructions))
    number_of = {name: i for i, name in enumerate(operations)}
    code = np.zeros((len(instructions), FIELDS), np.int32)
    for row, each in zip(code, instructions, strict=True):
        guard_field = -1 if each.guard is None else 2 * offsets[each.guard] + each.negated
        operands = [x if x < 0 else offsets[x] for x in (*each.writes, *each.reads)]
        numbers = (
            number_of[each.operation], guard_field, each.count, each.immediate, each.used, *operands
        )  # fmt: skip
        row[: len(numbers)] = numbers
    return Program(
        operations, code, bytes(decoder.constants), register_bytes, tuple(sizes), tuple(places)
    )


def _bits_of(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _allocate(code: list[_Instruction], bits: list[int]) -> tuple[list[int], int]:
    """Return an offset in bytes for each register, and how many bytes there are.

    Only registers of the same size share a place: a lane's part of it is the same then, and lanes
    that have come to different lines do not disturb each other.
    """
    spans = _spans(code, len(bits))
    free: dict[int, list[int]] = {size: [] for size in (1, 16, 32, 64)}
    busy: list[tuple[int, int, int]] = []  # last line, bits, offset
    offsets = [UNIT * i for i in range(len(bits))]
    end = UNIT * len(SPECIAL)
    for register in sorted(spans, key=lambda one: spans[one][0]):
        first, last = spans[register]
        while busy and busy[0][0] < first:
            _, size, offset = heapq.heappop(busy)
            free[size].append(offset)
        size = bits[register]
        if free[size]:
            offset = free[size].pop()
        else:
            offset, end = end, end + UNIT * (2 if size == 64 else 1)
        offsets[register] = offset
        heapq.heappush(busy, (last, size, offset))
    return offsets, end


def _spans(code: list[_Instruction], n_registers: int) -> dict[int, list[int]]:
    """Return the first and the last line at which each register is needed.

    Lanes that have taken another branch wait with their values, so a span reaches over all lines
    between, whoever runs there.
    """
    starts = {0}
    for at, each in enumerate(code):
        if each.label is not None:
            starts |= {each.immediate, at + 1}
    bounds = sorted(starts | {len(code)})
    number = {start: i for i, start in enumerate(bounds)}
    n_blocks = len(bounds) - 1
    needs, makes = [0] * n_blocks, [0] * n_blocks
    followers: list[list[int]] = [[] for _ in range(n_blocks)]
    spans: dict[int, list[int]] = {}

    def touch(register: int, at: int) -> None:
        span = spans.setdefault(register, [at, at])
        span[0], span[1] = min(span[0], at), max(span[1], at)

    special = (1 << len(SPECIAL)) - 1
    for block in range(n_blocks):
        need, make = 0, 0
        for at in range(bounds[block], bounds[block + 1]):
            each = code[at]
            reads = [x for x in each.reads if x >= 0]
            if each.guard is not None:
                reads += [each.guard, *each.writes]  # what is not written stays
            for register in reads:
                need |= 1 << register & ~make
                touch(register, at)
            for register in each.writes:
                make |= 1 << register
                touch(register, at)
        needs[block], makes[block] = need & ~special, make
        last = code[bounds[block + 1] - 1]
        if last.label is not None:
            followers[block].append(number[last.immediate])
        ends = last.operation in ("bra", "ret") and last.guard is None
        if not ends and block + 1 < n_blocks:
            followers[block].append(block + 1)
    entering = [0] * (n_blocks + 1)
    changed = True
    while changed:
        changed = False
        for block in reversed(range(n_blocks)):
            leaving = 0
            for follower in followers[block]:
                leaving |= entering[follower]
            new = needs[block] | leaving & ~makes[block]
            changed |= new != entering[block]
            entering[block] = new
    for block in range(n_blocks):
        for register in _bits_of(entering[block]):
            touch(register, bounds[block])
        leaving = 0
        for follower in followers[block]:
            leaving |= entering[follower]
        for register in _bits_of(leaving):
            touch(register, bounds[block + 1] - 1)
    return {register: span for register, span in spans.items() if register >= len(SPECIAL)}
