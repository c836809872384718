"""Progress bars: shown where asked for, and otherwise not even made."""

import pytest
import tqdm
from helpers import random_ratings

import gpu_als
from gpu_als import evaluation
from gpu_als.data.shards import ShardedMatrix, convert
from gpu_als.progress import ProgressBar


def test_a_bar_that_is_shown_counts_and_tells(capsys):
    with ProgressBar(show=True, total=4, desc="counting") as bar:
        bar.update()
        bar.set_postfix({"loss": "0.25"})
        bar.update(3)
    told = capsys.readouterr().err
    assert "counting: 100%" in told
    assert "4/4" in told
    assert "loss=0.25" in told


def test_a_bar_that_is_not_shown_needs_no_lock_that_a_killed_process_may_hold(
    tmp_path, monkeypatch, capsys
):
    """The lock of tqdm is shared by forked processes; its disabled bars take it too."""

    def locked():
        raise AssertionError("would wait for the lock")

    monkeypatch.setattr(tqdm.tqdm, "get_lock", locked)
    with pytest.raises(AssertionError, match="would wait"):
        ProgressBar(show=True)
    file = tmp_path / "r.csv"
    file.write_text("user,item,rating\n1,1,3\n1,2,4\n2,1,5\n")
    convert(file, tmp_path / "m", show_progress=False)
    ShardedMatrix.open(tmp_path / "m").verify(show_progress=False)
    user_items = random_ratings(9, 8, density=0.6, seed=29)
    model = gpu_als.AlternatingLeastSquares(factors=3, iterations=2, random_state=29)
    model.fit(user_items, show_progress=False)
    model.recommend_to_file(tmp_path / "best.npy", user_items, N=2, show_progress=False)
    evaluation.precision_at_k(model, user_items, user_items, K=2, show_progress=False)
    assert capsys.readouterr().err == ""
