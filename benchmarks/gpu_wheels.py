"""Brings along what a machine with a GPU lacks, where nothing can be downloaded there.

Wheels for Linux on x86-64, CPython 3.12 and CUDA 13 are saved in one folder, which git ignores: the
peer that gpu_suite.py compares with. CuPy, NumPy, SciPy, tqdm, threadpoolctl, cuda-bindings and
CUDA's libraries must be there already, and for the tests pytest and hypothesis; with pytest-xdist
they are quicker. Take the repository and the folder there and run what this prints.

    python benchmarks/gpu_wheels.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / ".wheels"
# With rmm 26.10 implicit 0.7.3 turns its GPU code off.
PACKAGES = ("implicit==0.7.3", "rmm-cu13==26.4.*", "librmm-cu13==26.4.*", "rapids-logger==0.2.*")
TARGET = ("--python-version=3.12", "--implementation=cp", "--abi=cp312", "--abi=abi3",
          "--abi=none", "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_24_x86_64",
          "--platform=manylinux2014_x86_64")  # fmt: skip
COMMAND = """\
python3 -m pip install -q --no-index --no-deps --upgrade --target /tmp/site {folder}/*.whl
PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 python3 benchmarks/gpu_suite.py --call {call} --output OUT
"""


def main() -> int:
    """Download; return the exit status."""
    WHEELS.mkdir(exist_ok=True)
    for old in WHEELS.glob("*.whl"):  # two versions of one package would stop the installation
        old.unlink()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", *TARGET, f"--dest={WHEELS}", *PACKAGES], check=False
    )
    if done.returncode:
        return done.returncode
    wheels = sorted(WHEELS.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{total / 2**20:6.1f} MiB in {WHEELS.name}; in the repository's root, there:\n")
    for call in (1, 2):
        print(COMMAND.format(folder=WHEELS.name, call=call))
    return 0


if __name__ == "__main__":
    sys.exit(main())
