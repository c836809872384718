"""A conversion takes no more memory than it is told, however large its input is."""

import subprocess
import sys

import numpy as np
import pytest

from gpu_als.data.shards import ShardedMatrix

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads the largest resident size where Linux tells it"
)
MIB = 1 << 20
PROGRAM = """
import sys
from gpu_als.cli import main
assert main(sys.argv[1:]) == 0
with open("/proc/self/status") as status:
    print(*(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def converted_within(budget, source, folder):
    """Convert in a process of its own, and check its largest resident size."""
    command = [sys.executable, "-c", PROGRAM, "convert", source, folder, "-q", "--memory"]
    result = subprocess.run(
        [*command, f"{budget // MIB}M"], capture_output=True, text=True, check=False, timeout=600
    )
    source.unlink()  # as large files as these are not for keeping
    assert result.returncode == 0, result.stderr
    assert 1024 * int(result.stdout.splitlines()[-1]) <= 1.2 * budget
    return ShardedMatrix.open(folder)


def write_lines(path, line, n_blocks, n_rows=500_000):
    """Write blocks of lines, each for another pair of ids of 6 digits."""
    rng = np.random.default_rng(51)
    with path.open("w") as stream:
        for _ in range(n_blocks):
            users = rng.integers(100_000, 130_000, n_rows).tolist()
            items = (100_000 + 5000 * rng.random(n_rows) ** 2).astype(int).tolist()
            stream.write("".join([line % pair for pair in zip(users, items, strict=True)]))


def test_a_file_several_times_the_memory(tmp_path):
    budget = 128 * MIB
    path = tmp_path / "long.csv"
    write_lines(path, "%d,%d,3.5," + "n" * 90 + "\n", 5)
    assert path.stat().st_size > 2 * budget
    matrix = converted_within(budget, path, tmp_path / "m")
    assert matrix.shape == (30_000, 5000)
    assert 2_300_000 < matrix.nnz < 2_500_000  # as triples in memory 60 MB, and sorted twice that


def test_a_parquet_file_of_one_row_group(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    from pyarrow import parquet

    rng = np.random.default_rng(52)
    n_rows = 6_000_000
    columns = {"user": rng.integers(0, 30_000, n_rows), "item": rng.integers(0, 5000, n_rows)}
    path = tmp_path / "large.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=n_rows)
    del columns
    matrix = converted_within(256 * MIB, path, tmp_path / "m")
    assert matrix.shape == (30_000, 5000)
