"""Objectives by name: each reads real text, with the tokenizer's ids."""

import re

import numpy as np
import pytest
import tiny
from corruptions import FIRST_REGULAR, MASK, PAD, corruption
from tiny import EOS, VOCAB_SIZE, encoded, sentences, tokenizer
from tokenizers import Tokenizer, models

from lightning_modules.errors import PipelineError
from lightning_modules.named_objectives import make_objective
from lightning_modules.objectives import CausalLM, Mixture, Objective, PrefixLM
from lightning_modules.spans import Ids
from lightning_modules.transformer.config import OBJECTIVES


def real_rows(length: int) -> Ids:
    joined = [token for text in encoded(sentences()) for token in (*text, EOS)]
    return np.array(joined[: len(joined) // length * length]).reshape(-1, length)


def made(names: dict[str, float], whole_words: bool = False) -> Objective:
    return make_objective(
        names, corruption_rate=0.3, mean_span_length=3.0, whole_words=whole_words, tokenizer=tokenizer()
    )


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_named_objective_reads_real_text(name: str) -> None:
    tokens = real_rows(64)[:32]
    source, target = made({name: 2.0}, whole_words=True)(tokens, np.random.default_rng(0))
    assert OBJECTIVES[name] <= {"encoder", "decoder", "encoder_decoder"}
    assert np.concatenate([source, target], axis=1).max() < VOCAB_SIZE
    assert target.max() >= FIRST_REGULAR


def test_the_tokenizers_ids_are_taken() -> None:
    assert made({"span_corruption": 1.0}) == corruption(0.3, 3.0, sentinels=64)
    assert tuple(map(tokenizer().token_to_id, ("<mask>", "</s>", "<pad>"))) == (MASK, EOS, PAD)
    for name in ("masked_lm", "denoising"):
        source, _ = made({name: 1.0})(real_rows(64), np.random.default_rng(0))
        assert set(np.unique(source[source < FIRST_REGULAR])) == {MASK, EOS} | ({PAD} if name == "denoising" else set())


def test_denoising_moves_real_sentences_and_whole_words_are_the_tokenizers() -> None:
    tokens = real_rows(128)[:16]
    source, _ = made({"denoising": 1.0})(tokens, np.random.default_rng(0))
    firsts = [(row[row != MASK][0], before[0]) for row, before in zip(source, tokens, strict=True)]
    assert sum(one != other for one, other in firsts) > 8
    _, target = made({"masked_lm": 1.0}, whole_words=True)(tokens, np.random.default_rng(0))
    begins = np.array([(tokenizer().id_to_token(n) or "").startswith("Ġ") for n in range(VOCAB_SIZE)])
    chosen = target != PAD
    inner = ~begins[tokens[:, 1:]] & (tokens[:, 1:] != EOS) & (tokens[:, :-1] != EOS)
    assert (chosen[:, 1:] == chosen[:, :-1])[inner].all()
    assert inner.sum() > 500


def test_several_names_make_a_mixture() -> None:
    mixture = made({"causal_lm": 1.0, "prefix_lm": 2.0})
    assert mixture == Mixture(((CausalLM(), 1.0), (PrefixLM(), 2.0)))


def test_an_unknown_name_is_one_line_with_those_there_are() -> None:
    with pytest.raises(PipelineError, match=r"pretrain\.objective: electra unknown; there are causal_lm, .*denoising$"):
        made({"electra": 1.0})
    with pytest.raises(PipelineError, match="needs objectives"):
        made({})


def test_sentinels_in_falling_order_as_t5_has_them_stand_for_the_same_spans() -> None:
    """T5's <extra_id_0> has the greatest id of all: here those of the tokenizer change places, and nothing else."""
    falling = Tokenizer.from_str(
        re.sub(r"<extra_id_(\d+)>", lambda name: f"<extra_id_{63 - int(name[1])}>", tiny.tokenizer_json())
    )
    options = {"corruption_rate": 0.3, "mean_span_length": 3.0, "whole_words": False}
    names, tokens = {"span_corruption": 1.0}, real_rows(64)[:32]
    assert falling.token_to_id("<extra_id_0>") == tiny.FIRST_SENTINEL + 63
    theirs = make_objective(names, **options, tokenizer=falling)(tokens, np.random.default_rng(0))
    ours = made(names)(tokens, np.random.default_rng(0))
    changed = 2 * tiny.FIRST_SENTINEL + 63 - np.arange(VOCAB_SIZE)
    for found, expected in zip(theirs, ours, strict=True):
        sentinels = (expected >= tiny.FIRST_SENTINEL) & (expected < FIRST_REGULAR)
        assert sentinels.sum() >= 5 * len(tokens)
        assert np.array_equal(found, np.where(sentinels, changed[expected], expected))


@pytest.mark.parametrize(
    ("name", "lacking"), [("masked_lm", "<mask>"), ("denoising", "<mask>"), ("span_corruption", "<extra_id_0>")]
)
def test_a_published_tokenizer_without_the_token_is_told_what_can_be_done(name: str, lacking: str) -> None:
    entries = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "rain": 5}
    bert = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
    bert.add_special_tokens(list(entries)[:5])
    with pytest.raises(
        PipelineError, match=rf"pretrain\.objective: {name} needs {lacking}, .*pretrain\.steps: 0"
    ) as no:
        make_objective({name: 1.0}, corruption_rate=0.3, mean_span_length=3.0, whole_words=False, tokenizer=bert)
    assert "tokenizer stage" not in str(no.value)
    assert "\n" not in str(no.value)
