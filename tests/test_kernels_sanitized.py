"""The kernels' tests once more, under AddressSanitizer and UndefinedBehaviorSanitizer.

A choice of them: compiling takes four times as long. All of ``test_kernels.py`` runs in the same
way, see :mod:`cuda_on_cpu`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_on_cpu
import pytest

# Every kernel, solver, storage and way to multiply.
CHOSEN = """
    (test_solutions and ([50 or half or ConjugateGradient or NonNegative))
    or (test_solutions and 520 and ridges)
    or (test_every_objective and weighted and Cholesky)
"""


def missing():
    """Return what is missing for sanitised kernels, or None."""
    if not cuda_on_cpu.have_compiler():
        return "kernels are compiled by g++, which is not here"
    libraries = cuda_on_cpu.sanitized_environment()["LD_PRELOAD"].split()
    absent = [library for library in libraries if not Path(library).is_file()]
    return f"g++ has no {', '.join(absent)}" if absent else None


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_kernels_reach_nothing_that_is_not_theirs():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_kernels.py"]
    done = subprocess.run(
        [*command, "-k", " ".join(CHOSEN.split())],
        env=os.environ | cuda_on_cpu.sanitized_environment(),
        cwd=here,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed, done.stdout
    assert int(passed[1]) >= 17
    assert "skipped" not in done.stdout
    assert "runtime error" not in done.stdout + done.stderr
