"""Greedy decoding: Hugging Face's tokens with the same weights, a plain loop's tokens, whatever shares the batch."""

import pytest
import torch
from reference import hugging_face
from tiny import EOS, encoded, lively, sentences, source_mask

from lightning_modules.batching import pad
from lightning_modules.decoding import greedy
from lightning_modules.transformer.model import EncoderDecoder

MOST = 20


def sources(count: int) -> list[list[int]]:
    return [[*ids[:60], EOS] for ids in encoded(sentences()[:count])]


def batched(texts: list[list[int]], ours: EncoderDecoder, most: int = MOST) -> list[list[int]]:
    source_BS = torch.from_numpy(pad(texts, 0))
    return greedy(ours, source_BS, source_mask(source_BS), most)


def one_by_one_without_cache(ours: EncoderDecoder, source: list[int]) -> list[int]:
    """The definition: the whole target is read again for each token; no batch, no mask, no cache."""
    written = [ours.config.bos_id]
    with torch.no_grad():
        for _ in range(MOST):
            hidden = ours(torch.tensor([source]), torch.tensor([written]))
            token = int(ours.logits(hidden[0, -1]).argmax())
            if token == EOS:
                break
            written.append(token)
    return written[1:]


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_several_hundred_sentences_come_out_as_from_hugging_face(norm: str) -> None:
    ours = lively(norm=norm)
    theirs, texts = hugging_face(ours), sources(400)
    lengths = set()
    for start in range(0, len(texts), 50):
        part = texts[start : start + 50]
        source_BS = torch.from_numpy(pad(part, 0))
        generated = theirs.generate(
            input_ids=source_BS,
            attention_mask=(source_BS != 0).long(),
            max_new_tokens=MOST,
            num_beams=1,
            do_sample=False,
        )
        expected = [[*row[1:], EOS][: [*row[1:], EOS].index(EOS)] for row in generated.tolist()]
        assert batched(part, ours) == expected
        lengths |= set(map(len, expected))
    assert len(lengths) > 5  # early, late and never: the test has seen them all
    assert {0, MOST} <= lengths


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_it_is_the_plain_loop(norm: str) -> None:
    ours, texts = lively(norm=norm), sources(60)
    assert batched(texts, ours) == [one_by_one_without_cache(ours, text) for text in texts]


def test_the_company_in_a_batch_changes_nothing() -> None:
    ours, texts = lively(), sources(60)
    together = batched(texts, ours)
    backwards = list(reversed(batched(list(reversed(texts)), ours)))
    in_sevens = [row for start in range(0, 60, 7) for row in batched(texts[start : start + 7], ours)]
    assert together == backwards == in_sevens


def test_no_more_tokens_than_allowed_and_none_beyond_the_positions() -> None:
    ours, texts = lively(), sources(40)
    full, three = batched(texts, ours), batched(texts, ours, most=3)
    assert three == [row[:3] for row in full]
    assert batched(texts, ours, most=0) == [[] for _ in texts]
    short = lively(max_length=8)
    short.embedding.weight_VD.data[EOS] = 0.0  # a score of 0 never wins
    assert {len(row) for row in batched([text[:8] for text in texts], short, most=500)} == {8}


def test_a_source_without_padding_needs_no_mask() -> None:
    ours, texts = lively(norm="post"), [text[:4] for text in sources(30)]
    source_BS = torch.tensor(texts)
    assert greedy(ours, source_BS, None, MOST) == greedy(ours, source_BS, source_mask(source_BS), MOST)
