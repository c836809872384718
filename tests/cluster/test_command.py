"""``gpu-als fit --scheduler``."""

import socket

import numpy as np
import pytest

from cluster.common import DATA
from gpu_als import ExplicitALS
from gpu_als.cli import fit, main
from gpu_als.data.shards import ShardedMatrix


@pytest.fixture
def sources(tmp_path):
    """Return the same ratings as a file and as a folder of shards."""
    entries = DATA.tocoo()
    triples = zip(entries.row, entries.col, entries.data, strict=True)
    lines = [f"{u},{i},{v:g}" for u, i, v in triples]
    file = tmp_path / "ratings.csv"
    file.write_text("\n".join(["user,item,rating", *lines]) + "\n")
    assert main(["convert", str(file), str(tmp_path / "ratings.shards"), "-q"]) == 0
    return file, tmp_path / "ratings.shards"


def fitted(source, output, *options):
    options = ("-q", "--factors", "4", "--iterations", "2", "--backend", "numpy", *options)
    assert main(["fit", str(source), "-o", str(output), *options]) == 0
    return ExplicitALS.load(output)


def test_a_fit_on_a_cluster_is_that_of_one_process(client, sources, tmp_path, capsys):
    address = client.scheduler.address
    for source in sources:
        alone = fitted(source, tmp_path / "alone.npz")
        assert "CPU" in capsys.readouterr().out
        together = fitted(source, tmp_path / "together.npz", "--scheduler", address)
        assert f"Dask: {len(client.nthreads())} x CPU" in capsys.readouterr().out
        np.testing.assert_allclose(together.user_factors, alone.user_factors, atol=2e-6)
        np.testing.assert_array_equal(together.user_ids, alone.user_ids)
    assert ShardedMatrix.open(sources[1]).nnz == DATA.nnz


def test_an_address_that_does_not_answer(sources, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fit, "_SCHEDULER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    arguments = ["fit", str(sources[0]), "-q", "--scheduler", f"tcp://127.0.0.1:{port}"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"--scheduler: no answer from tcp://127.0.0.1:{port}" in error
    assert "dask scheduler" in error
