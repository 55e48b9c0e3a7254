"""Inputs on which an exported model must answer as ours does: a person's own lines, or texts drawn from the tokenizer.

Drawn texts are no language, but they are real inputs: any text is split into the same tokens, and random ones visit
the vocabulary evenly. Costs milliseconds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError

FEWEST, MOST = 64, 256  # inputs that are compared
_DRAWN = 3, 32  # tokens of a drawn text: so many, and fewer than so many


def read_sample(path: Path) -> list[str]:
    """The lines of a file that are not empty. Raises PipelineError where there are none, or it is no UTF-8."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): give a UTF-8 file with one text a line") from error
    if not any(lines):
        raise PipelineError(f"{path} holds no text: give a UTF-8 file with one text a line")
    return [line for line in lines if line]


def sample_rows(tokenizer: Tokenizer, texts: Sequence[str], longest: int, eos_id: int) -> list[list[int]]:
    """Ids of the first MOST texts, each cut to `longest` with </s>; drawn texts make them FEWEST at least.

    Texts without a single token are left out: a source of </s> alone is no input that every runtime takes.
    """
    chosen = [*texts[:MOST], *_drawn(tokenizer, max(0, FEWEST - len(texts)))]
    encodings = tokenizer.encode_batch_fast(chosen, add_special_tokens=False)
    return [[*encoding.ids[: longest - 1], eos_id] for encoding in encodings if encoding.ids]


def _drawn(tokenizer: Tokenizer, count: int) -> list[str]:
    """Texts of random tokens that are not special, the same every time."""
    rng = np.random.default_rng(0)
    special = tokenizer.get_added_tokens_decoder()
    plain = np.array([number for number in range(tokenizer.get_vocab_size()) if number not in special])
    drawn = [rng.choice(plain, rng.integers(*_DRAWN)).tolist() for _ in range(count)]
    return [tokenizer.decode(ids) for ids in drawn]
