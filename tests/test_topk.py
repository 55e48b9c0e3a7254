"""The greatest by blocks are torch's, ties and -∞ included."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.search.topk import top


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 700), st.integers(1, 12), st.booleans())
def test_the_greatest_are_found_among_blocks(seed: int, size: int, count: int, equals: bool) -> None:
    count = min(count, size)
    score = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(seed))
    score = score.round() if equals else score
    for given_scores in (score, score.masked_fill(score < 0.5, float("-inf"))):
        values, places = top(given_scores, count)
        assert torch.equal(values, given_scores.topk(count).values)
        assert torch.equal(given_scores.gather(-1, places), values)
        assert all(len(set(row)) == count for row in places.flatten(0, 1).tolist())
