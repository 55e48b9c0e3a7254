"""Pre-training objectives by the names and numbers that params.yaml gives, with the ids of a tokenizer.

Costs a look at each entry of the vocabulary where whole words are masked or sentences shuffled.
"""

from collections.abc import Mapping
from itertools import count

from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError
from lightning_modules.objectives import CausalLM, Denoising, MaskedLM, Mixture, Objective, PrefixLM, SpanCorruption
from lightning_modules.transformer.config import OBJECTIVES
from lightning_modules.vocabulary import sentence_ends, special_count, word_starts


def make_objective(
    names: Mapping[str, float],
    *,
    corruption_rate: float,
    mean_span_length: float,
    whole_words: bool,
    tokenizer: Tokenizer,
) -> Objective:
    """The objective of that name, or the mixture of several by their weights. Raises PipelineError."""
    unknown = sorted(set(names) - set(OBJECTIVES))
    if unknown:
        raise PipelineError(f"pretrain.objective: {', '.join(unknown)} unknown; there are {', '.join(OBJECTIVES)}")
    parts = tuple(
        (_make_one(name, corruption_rate, mean_span_length, whole_words, tokenizer), weight)
        for name, weight in names.items()
    )
    mixture = Mixture(parts)
    return parts[0][0] if len(parts) == 1 else mixture


def _make_one(name: str, rate: float, mean: float, whole_words: bool, tokenizer: Tokenizer) -> Objective:
    def token(text: str) -> int:
        number = tokenizer.token_to_id(text)
        if number is None:
            raise PipelineError(
                f"pretrain.objective: {name} needs {text}, which only tokenizers made here are sure to have: take a "
                "published model as it is (pretrain.steps: 0), or causal_lm or prefix_lm, which need no special tokens"
            )
        return int(number)

    match name:
        case "causal_lm":
            return CausalLM()
        case "prefix_lm":
            return PrefixLM()
        case "masked_lm":
            starts = word_starts(tokenizer) if whole_words else None
            entries = tokenizer.get_vocab_size()
            return MaskedLM(rate, token("<mask>"), token("<pad>"), special_count(tokenizer), entries, starts)
        case "span_corruption":
            first = token("<extra_id_0>")
            step = -1 if tokenizer.token_to_id("<extra_id_1>") == first - 1 else 1  # T5's own stand in falling order
            sentinels = next(n for n in count() if tokenizer.token_to_id(f"<extra_id_{n}>") != first + step * n)
            return SpanCorruption(rate, mean, first, sentinels, token("</s>"), step)
        case _:
            ends = sentence_ends(tokenizer)
            return Denoising(rate, mean, token("<mask>"), token("<pad>"), token("</s>"), ends)
