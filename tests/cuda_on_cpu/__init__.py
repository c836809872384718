"""CUDA kernels on the CPU: compiled by g++ behind ``cuda_on_cpu.h`` and called as CuPy's are.

A kernel's threads become fibres, its blocks run one after another, and what a GPU leaves undefined
becomes an error (``cuda_on_cpu.h`` says which). Three things change how a kernel is run:

``CUDA_ON_CPU_ORDER=reverse`` or ``shuffle:SEED``
    Run the threads, warps and blocks in another order. A kernel's result may not depend on it,
    except through a missing barrier.
``count=True``
    Count global traffic and shared-memory wavefronts (:class:`Counts`), and look for races in
    shared memory.
``GPU_ALS_SANITIZE=1``
    Compile with AddressSanitizer and UndefinedBehaviorSanitizer, which see every access outside
    of shared memory and of the arrays. Python itself must then start with their libraries::

        env = os.environ | cuda_on_cpu.sanitized_environment()
        subprocess.run([sys.executable, "-m", "pytest", "tests/test_kernels.py"], env=env)
"""

from cuda_on_cpu.build import (
    Counts,
    CudaOnCpuError,
    Kernel,
    SharedCounts,
    Site,
    Traffic,
    have_compiler,
    load,
    sanitized_environment,
)

__all__ = [
    "Counts",
    "CudaOnCpuError",
    "Kernel",
    "SharedCounts",
    "Site",
    "Traffic",
    "have_compiler",
    "load",
    "sanitized_environment",
]
