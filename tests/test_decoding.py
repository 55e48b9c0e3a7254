"""Greedy decoding: Hugging Face's tokens with the same weights, a plain loop's tokens, whatever shares the batch."""

from typing import Any

import pytest
import torch
from searching import FAMILIES, MOST, SHAPES, from_hugging_face, sources, tensors
from tiny import EOS, lively

from lightning_modules.decoding import greedy
from lightning_modules.interop.huggingface import to_hugging_face


def batched(texts: list[list[int]], ours: Any, most: int = MOST, first: int | None = None) -> list[list[int]]:
    first_B1 = None if first is None else torch.full((len(texts), 1), first)
    return greedy(ours, *tensors(texts, ours), most, first_B1)


def one_by_one_without_cache(ours: Any, source: list[int], most: int = MOST, first: int | None = None) -> list[int]:
    """The definition: everything is read again for each token; no batch, no mask, no cache."""
    written = [ours.config.bos_id if first is None else first]
    with torch.no_grad():
        for _ in range(most):
            hidden = ours(torch.tensor([source], dtype=torch.long), torch.tensor([written]))
            token = int(ours.logits(hidden[0, -1]).argmax())
            if token == EOS:
                break
            written.append(token)
    return written[1:]


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_five_hundred_sentences_come_out_as_from_hugging_face(family: str, changes: dict[str, Any]) -> None:
    """A decoder's sources stand at the right of the batch, as Hugging Face wants them, too."""
    ours, texts = lively(**changes), sources(500)
    theirs = to_hugging_face(ours)
    assert type(theirs).__name__.startswith(family)
    expected = [answers[0][0] for answers in from_hugging_face(theirs, texts, ours)]
    assert [row for start in range(0, 500, 50) for row in batched(texts[start : start + 50], ours)] == expected
    lengths = set(map(len, expected))
    assert len(lengths) > 5  # early, late and never: the test has seen them all
    assert {0, MOST} <= lengths


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_plain_loop_for_each_row_alone(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), sources(30)
    written = batched(texts, ours)
    assert written == [one_by_one_without_cache(ours, text) for text in texts]
    assert len({tuple(row) for row in written}) > 10


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder, learned", "decoder, like Llama"])
def test_the_company_in_a_batch_changes_nothing(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), sources(60)
    together = batched(texts, ours)
    assert len(set(map(len, together))) > 5  # rows leave the batch at different times
    backwards = list(reversed(batched(list(reversed(texts)), ours)))
    in_sevens = [row for start in range(0, 60, 7) for row in batched(texts[start : start + 7], ours)]
    assert together == backwards == in_sevens


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder, learned", "decoder, prefix", "decoder, relative"])
def test_writing_goes_on_from_another_token(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), sources(20)
    written = batched(texts, ours, first=300)
    assert written == [one_by_one_without_cache(ours, text, first=300) for text in texts]
    assert written != batched(texts, ours)


@pytest.mark.parametrize("shape", ["decoder, learned", "decoder, alibi", "decoder, prefix"])
def test_a_decoder_can_write_from_nothing(shape: str) -> None:
    ours = lively(**SHAPES[shape]).double()
    nothing = torch.zeros(3, 0, dtype=torch.long)
    for first in (None, 300):
        expected = one_by_one_without_cache(ours, [], first=first)
        first_B1 = None if first is None else torch.full((3, 1), first)
        assert greedy(ours, nothing, None, MOST, first_B1) == [expected] * 3


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder, rotary"])
def test_no_more_tokens_than_allowed(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), sources(40)
    full, three = batched(texts, ours), batched(texts, ours, most=3)
    assert three == [row[:3] for row in full]
    assert max(map(len, full)) == MOST
    assert batched(texts, ours, most=0) == [[] for _ in texts]


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_learned_positions_end_what_is_written_and_others_do_not(architecture: str) -> None:
    texts = [text[:5] for text in sources(20)]
    lengths = []
    for positions in ("learned", "sinusoidal"):
        ours = lively(architecture=architecture, positions=positions, max_length=9)
        ours.embedding.weight_VD.data[EOS] = 0.0  # a score of 0 never wins
        written = batched(texts, ours, most=30)
        lengths.append({len(row) for row in written})
        room = 9 - (5 if architecture == "decoder" else 0) if positions == "learned" else 30
        assert written == [one_by_one_without_cache(ours, text, room) for text in texts]
    assert lengths == [{4 if architecture == "decoder" else 9}, {30}]


@pytest.mark.parametrize("shape", ["encoder-decoder, post-norm", "decoder, learned", "decoder, prefix"])
def test_a_source_without_padding_needs_no_mask(shape: str) -> None:
    ours, texts = lively(**SHAPES[shape]).double(), [text[:4] for text in sources(30)]
    source_BS = torch.tensor(texts)
    assert greedy(ours, source_BS, None, MOST) == greedy(ours, source_BS, source_BS != 0, MOST)
