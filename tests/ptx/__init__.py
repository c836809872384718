"""Kernels on the CPU: the PTX that NVRTC makes of them, run by an interpreter.

:func:`load` compiles a CUDA source; what it returns is called as CuPy's kernels are. The
interpreter (``machine.cpp``, compiled once by g++) runs a block's warps one after another and
raises :class:`MachineError` at what a GPU leaves undefined: accesses outside of the arrays it knows
or not aligned, use of shared memory that nobody has written, barriers and operations of a warp that
not all threads reach, races in shared and in global memory. It counts traffic and bank conflicts
(:class:`Counts`). Lanes, warps and blocks run in another order where ``kernel.order`` is "reverse"
or "shuffle:SEED"; no result may depend on it.
"""

from ptx.kernel import (
    Counts,
    Kernel,
    MachineError,
    Module,
    SharedCounts,
    Site,
    Traffic,
    load,
    missing,
)

__all__ = [
    "Counts",
    "Kernel",
    "MachineError",
    "Module",
    "SharedCounts",
    "Site",
    "Traffic",
    "load",
    "missing",
]
