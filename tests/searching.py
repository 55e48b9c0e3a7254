"""What tests of decoding share: shapes of models, real sources, Hugging Face's answers, searches by definition."""

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import torch
from tiny import EOS, encoded, sentences
from torch import Tensor

from lightning_modules.batching import pad, source_tensors

MOST = 20
DECODER: dict[str, Any] = {"architecture": "decoder"}
GPT2 = DECODER | {"positions": "learned", "scale_embeddings": False, "activation": "gelu_tanh"}
LLAMA = DECODER | {
    "positions": "rotary",
    "scale_embeddings": False,
    "activation": "swiglu",
    "norm_type": "rms",
    "bias": False,
    "key_value_heads": 2,
}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Marian", {"norm": "post"}),
    ("Pegasus", {}),
    ("GPT2", GPT2),
    ("Llama", LLAMA),
]
SHAPES: dict[str, dict[str, Any]] = {
    "encoder-decoder": {},
    "encoder-decoder, post-norm": {"norm": "post"},
    "encoder-decoder, relative": {"positions": "relative"},
    "decoder, sinusoidal": DECODER,
    "decoder, learned": DECODER | {"positions": "learned"},
    "decoder, rotary": DECODER | {"positions": "rotary"},
    "decoder, alibi": DECODER | {"positions": "alibi"},
    "decoder, relative": DECODER | {"positions": "relative"},
    "decoder, window": DECODER | {"positions": "rotary", "window": 8},
    "decoder, prefix": DECODER | {"bidirectional_prefix": True, "positions": "learned"},
    "decoder, prefix, relative": DECODER | {"bidirectional_prefix": True, "positions": "relative"},
    "decoder, like Llama": LLAMA,
}
Text = tuple[list[int], float]  # ids without </s>, and its score


def sources(count: int) -> list[list[int]]:
    """Real sentences, each with </s>."""
    texts = [[*ids[:60], EOS] for ids in encoded(sentences()[:count])]
    assert len(texts) == count
    return texts


def tensors(texts: Sequence[Sequence[int]], ours: Any) -> tuple[Tensor, Tensor | None]:
    return source_tensors(pad(texts, 0), 0, ours.config.architecture == "decoder")


def from_hugging_face(theirs: Any, texts: list[list[int]], ours: Any, **options: Any) -> list[list[Text]]:
    """What `generate` returns for each source: texts without prompt and </s>, and their scores (0: none)."""
    writes_on, bos = ours.config.architecture == "decoder", ours.config.bos_id
    answers = options.get("num_return_sequences", 1)
    found: list[list[Text]] = []
    for start in range(0, len(texts), 100):
        part = texts[start : start + 100]
        begun = [[*text, bos] for text in part] if writes_on else part
        read_BS, real_BS = source_tensors(pad(begun, 0), 0, writes_on)
        if not writes_on:
            options |= {"decoder_input_ids": torch.tensor([[bos]] * len(part))}
        generated = theirs.generate(
            **{"max_new_tokens": MOST, "num_beams": 1, "do_sample": False} | options,
            input_ids=read_BS,
            attention_mask=torch.ones_like(read_BS) if real_BS is None else real_BS.long(),
            pad_token_id=0,
            eos_token_id=EOS,
            return_dict_in_generate=True,
            output_scores=True,
        )
        begin = read_BS.shape[1] if writes_on else 1
        rows = [[*row[begin:], EOS] for row in generated.sequences.tolist()]
        ids = [row[: row.index(EOS)] for row in rows]
        scores = generated.sequences_scores.tolist() if "sequences_scores" in generated else [0.0] * len(ids)
        pairs = list(zip(ids, scores, strict=True))
        found += [pairs[first : first + answers] for first in range(0, len(pairs), answers)]
    return found


@torch.no_grad()
def log_probabilities(ours: Any, source: list[int], written: list[list[int]]) -> Tensor:
    """(N, T, V) after each token of N texts of one length, <s> first; all is read again, nothing cached."""
    source_NS = torch.tensor([source] * len(written), dtype=torch.long)
    return ours.logits(ours(source_NS, torch.tensor(written))).double().log_softmax(-1)  # type: ignore[no-any-return]


def every_text(ours: Any, source: list[int], most: int) -> list[tuple[list[int], float, int]]:
    """All texts of a model with a tiny vocabulary, ended by </s> or as long as can be: log-probability, and length."""
    whole = [list(text) for text in product(range(ours.config.vocab_size), repeat=most)]
    score_NTV = log_probabilities(ours, source, [[ours.config.bos_id, *text[:-1]] for text in whole])
    gain_NT = score_NTV.gather(-1, torch.tensor(whole)[..., None])[..., 0]
    found: dict[tuple[int, ...], tuple[list[int], float, int]] = {}
    for text, gains in zip(whole, gain_NT.tolist(), strict=True):
        length = text.index(EOS) + 1 if EOS in text else most
        ended = text[:length]
        found[tuple(ended)] = [token for token in ended if token != EOS], sum(gains[:length]), length
    return list(found.values())


def beams_without_end(ours: Any, source: list[int], beams: int, most: int, penalty: float) -> tuple[list[Text], float]:
    """Beam search by its definition: lists, one source, no cache, and no stopping before the limit.

    And by how little two of the best continuations ever differed: rounding may order those of a millionth.
    """
    eos = ours.config.eos_id
    going: list[tuple[list[int], float]] = [([ours.config.bos_id], 0.0)]
    finished: list[Text] = []
    closest = float("inf")
    for length in range(1, most + 1):
        score_NV = log_probabilities(ours, source, [ids for ids, _ in going])[:, -1].tolist()
        everyone = [
            ([*ids, token], total + gain)
            for (ids, total), gains in zip(going, score_NV, strict=True)
            for token, gain in enumerate(gains)
        ]
        best = sorted(everyone, key=lambda text: -text[1])[: 2 * beams + 1]
        closest = min([closest, *(one[1] - other[1] for one, other in pairwise(best))])
        for ids, total in best[:beams]:
            if ids[-1] == eos or length == most:
                finished.append(([token for token in ids[1:] if token != eos], total / length**penalty))
        going = [text for text in best[: 2 * beams] if text[0][-1] != eos][:beams]
    return sorted(finished, key=lambda text: -text[1])[:beams], closest
