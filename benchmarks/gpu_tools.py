"""Programs that the suite calls: the tests, nvidia-smi, a profiler, a sanitizer."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
from gpu_run import Row

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
TRACED = Path(__file__).with_name("gpu_traced.py")
SHOWN = 6000
_CLOCKS = {
    "sm_MHz": "clocks.sm",
    "memory_MHz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
}
_NCU_SECTIONS = (
    "SpeedOfLight", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "Occupancy",
    "LaunchStats",
)  # fmt: skip


def run_group(command: Sequence[str], seconds: float, log: Path) -> int | None:
    """Run a program, its output in ``log``; return its status, None where it did not end in time.

    It leads a process group, and whatever is left of that at the end is killed.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def end_of(log: Path) -> str:
    """Return the end of a program's output."""
    return log.read_text(errors="replace")[-SHOWN:].strip()


def gpu_tests(seconds: float, log: Path) -> Iterator[Row]:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    if find_spec("xdist"):  # most of the time kernels are compiled, by the host
        command += ["-n", str(min(8, len(os.sched_getaffinity(0)))), "--dist", "worksteal"]
    status = run_group([*command, str(TESTS)], seconds, log)
    shown = end_of(log)
    if status is None:
        yield {"ok": False, "note": f"the tests did not end within {seconds:.0f} s"}
    else:
        summary = (shown.splitlines() or [""])[-1]
        found = re.findall(r"(\d+) (passed|failed|error|skipped)", summary)
        counts = {word: int(number) for number, word in found}
        passed = counts.get("passed", 0)
        failed = counts.get("failed", 0) + counts.get("error", 0)
        ok = status == 0 and passed > 0
        yield {"passed": passed, "failed": failed, "skipped": counts.get("skipped", 0), "ok": ok}
        if ok:
            return
    yield {"note": shown}


def clocks_now(pci: str) -> list[Row]:
    """Return what nvidia-smi says of the device's clocks, once; nothing where it is not here."""
    if which("nvidia-smi") is None:
        return []
    done = subprocess.run(_clocks(pci), stdout=subprocess.PIPE, text=True, timeout=20, check=False)
    return list(_parsed(done.stdout.splitlines()))


@contextlib.contextmanager
def clocks_meanwhile(pci: str) -> Iterator[list[Row]]:
    """Yield a list that in the end has what nvidia-smi said ten times a second."""
    samples: list[Row] = []
    if which("nvidia-smi") is None:
        yield samples
        return
    with tempfile.TemporaryFile("w+") as output:
        sampler = subprocess.Popen([*_clocks(pci), "--loop-ms=100"], stdout=output)
        try:
            yield samples
        finally:
            sampler.kill()
            sampler.wait()
        output.seek(0)
        samples += _parsed(output)


def _clocks(pci: str) -> list[str]:
    query = f"--query-gpu={','.join(_CLOCKS.values())}"
    return ["nvidia-smi", f"--id={pci}", query, "--format=csv,noheader,nounits"]


def _parsed(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        with contextlib.suppress(ValueError):  # "[N/A]", or the last line cut off
            yield dict(zip(_CLOCKS, map(float, line.split(",")), strict=True))


def median_clocks(samples: Sequence[Row]) -> Row:
    """Return the medians of what was read, and the lowest and highest clock."""
    medians = {name: float(np.median([one[name] for one in samples])) for name in samples[0]}
    sm = [one["sm_MHz"] for one in samples]
    return {**medians, "lowest_MHz": min(sm), "highest_MHz": max(sm), "samples": len(sm)}


def profile(seconds: float, log: Path, *, quick: bool) -> Iterator[Row]:
    """Let Nsight Compute look at the launches with the most arithmetic."""
    program = which("ncu")
    if program is None:
        yield {"note": "ncu is not here"}
        return
    sections = [word for name in _NCU_SECTIONS for word in ("--section", name)]
    command = [program, "--profile-from-start", "off", "--clock-control", "none", *sections]
    status = run_group([*command, *_traced("largest", quick)], seconds, log)
    kernels = re.findall(r'==PROF== Profiling "([^"]+)"', log.read_text(errors="replace"))
    for kernel in kernels:
        yield {"kernel": kernel, "written": log.name}
    if status != 0 or not kernels:
        yield {"note": f"ncu gave {status}: {end_of(log)}"}


def racecheck(seconds: float, log: Path, *, quick: bool) -> Iterator[Row]:
    """Let compute-sanitizer look for races in shared memory."""
    program = which("compute-sanitizer")
    if program is None:
        yield {"note": "compute-sanitizer is not here"}
        return
    command = [program, "--tool", "racecheck", *_traced("small", quick)]
    status = run_group(command, seconds, log)
    text = log.read_text(errors="replace")
    found = re.search(r"RACECHECK SUMMARY: (\d+) hazards?", text)
    if found and status == 0:
        yield {"hazards": int(found[1]), "ok": found[1] == "0"}
    if not found or status != 0 or found[1] != "0":
        yield {"note": f"compute-sanitizer gave {status}: {end_of(log)}"}


def _traced(what: str, quick: bool) -> list[str]:
    return [sys.executable, str(TRACED), what, *(["--quick"] if quick else [])]
