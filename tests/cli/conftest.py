"""Files of ratings and models for the commands to work on."""

from pathlib import Path

import numpy as np
import pytest

from gpu_als.cli import main
from gpu_als.data.synthetic import planted_ratings


def write_csv(path, users, items, values):
    lines = [f"{u},{i},{v!r}" for u, i, v in zip(users, items, values, strict=True)]
    path.write_text("\n".join(["userId,movieId,rating", *lines]) + "\n")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """Return a folder with train.csv, test.csv, and a trained model of each kind."""
    folder = tmp_path_factory.mktemp("cli")
    made = planted_ratings(120, 60, 3000, rank=3, noise=0.3, random_state=5)
    users = np.array([f"u{row}" for row in made.rows])
    items = made.cols + 1000
    values = np.round(made.values.astype(float), 3).tolist()
    held_out = np.random.default_rng(6).random(3000) < 0.2
    values = np.array(values)
    write_csv(folder / "train.csv", users[~held_out], items[~held_out], values[~held_out].tolist())
    write_csv(
        folder / "test.csv",
        [*users[held_out], "nobody", "u1"],
        [*items[held_out], 1001, 99],
        [*values[held_out].tolist(), 3.0, 3.0],
    )
    base = ["fit", str(folder / "train.csv"), "-q", "--factors", "3", "--backend", "numpy"]
    explicit = ["-o", str(folder / "explicit.npz"), "--regularization", "0.02"]
    assert main([*base, *explicit]) == 0
    implicit = ["-o", str(folder / "implicit.npz"), "--model", "implicit"]
    assert main([*base, *implicit]) == 0
    return folder
