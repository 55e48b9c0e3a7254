"""Drawing: Hugging Face's choice of what to draw from, each token as often as it should be, repeatable anywhere."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import MOST, SHAPES, log_probabilities, sources, tensors
from tiny import EOS, lively
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lightning_modules.decoding import Decoding, Hypothesis, decode, greedy
from lightning_modules.search.sampling import drawn, narrowed

VOCAB = 40


def written(ours: Any, texts: list[list[int]], **options: Any) -> list[list[Hypothesis]]:
    return decode(ours, *tensors(texts, ours), Decoding(MOST, sample=True, **options))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 5, 60]),
    st.floats(0.05, 0.999) | st.just(1.0),  # between them, rounding decides of shares of a billionth
    st.floats(0.0, 1.0),
)
def test_what_is_drawn_from_is_hugging_faces(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    score = 3 * torch.randn(2, 3, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = TemperatureLogitsWarper(temperature)(None, score.flatten(0, 1))
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    options = Decoding(5, sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    torch.testing.assert_close(narrowed(score, options).flatten(0, 1), expected)


def test_tokens_come_as_often_as_they_are_probable_and_never_where_they_are_excluded() -> None:
    score = torch.tensor([float("-inf"), 0.0, 1.0, float("-inf"), -1.0, 2.0, float("-inf")])
    count = 20_000
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    for draws in (middles, ends):
        tokens = drawn(score.expand(len(draws), 1, -1), draws[:, None], Decoding(5, sample=True))
        share = tokens.flatten().bincount(minlength=7) / len(draws)
        assert not share[score.isinf()].any()
        if len(draws) == count:
            torch.testing.assert_close(share.double(), score.double().softmax(0), atol=2 / count, rtol=0)


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder, learned", "decoder, alibi"])
def test_draws_belong_to_source_and_seed_whatever_the_batch(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), sources(40)  # that rounding decides nothing
    options = {"answers": 3, "seed": 7, "top_k": 50}
    together = written(ours, texts, **options)
    sevens = [row for start in range(0, 40, 7) for row in written(ours, texts[start : start + 7], **options)]
    assert [[text.ids for text in row] for row in together] == [[text.ids for text in row] for row in sevens]
    assert together != written(ours, texts, **options | {"seed": 8})
    different = [len({tuple(text.ids) for text in row}) for row in together]
    assert sum(different) > 80
    for row, source in zip(together[:5], texts, strict=False):
        assert [text.score for text in row] == sorted((text.score for text in row), reverse=True)
        for text in row:
            ended = [*text.ids, EOS] if len(text.ids) < MOST else text.ids
            score_TV = log_probabilities(ours, source, [[ours.config.bos_id, *ended[:-1]]])[0]
            gains = score_TV.gather(1, torch.tensor(ended)[:, None])
            assert text.score == pytest.approx(float(gains.mean()), abs=1e-4)


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_drawing_from_one_token_is_greedy(changes: dict[str, Any]) -> None:
    ours, texts = lively(), sources(30)
    found = written(ours, texts, **changes)
    assert [answers[0].ids for answers in found] == greedy(ours, *tensors(texts, ours), MOST)
