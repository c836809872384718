"""One split of MovieLens ml-latest-small beside an independent package's mean over five."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_ratings

ROOT = Path(__file__).parents[1]
RATINGS = ROOT.parent / "shared" / "data" / "ml-latest-small" / "ratings.csv"

# cmfrec's standard deviation over the five splits, for the rows of real_ratings.ROWS
SPREAD = [0.0040, 0.0047, 0.0057, 0.0044]


@pytest.mark.skipif(not RATINGS.exists(), reason="ml-latest-small is not beside the checkout")
@pytest.mark.parametrize(
    ("row", "spread"), list(zip(real_ratings.ROWS, SPREAD, strict=True)), ids=str
)
def test_held_out_rmse_is_that_of_the_reference(row, spread):
    factors, bias, reference = row
    found = real_ratings.held_out_rmse(RATINGS, 3, factors, bias)
    assert abs(found - reference) < 2.5 * spread
