"""Pre-training objectives: rows of token ids → (source, target), vectorised over the batch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_modules.errors import PipelineError

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4 and figure 2).

    Spans of the text are each replaced by one sentinel token; the target lists every sentinel followed by what it
    hides. The number of hidden tokens and of spans is fixed by the row's length, so all rows come out equally long and
    nothing is padded.
    """

    corruption_rate: float
    mean_span_length: float
    first_sentinel: int
    sentinels: int
    eos_id: int

    def spans_and_noise(self, length: int) -> tuple[int, int]:
        """(spans, hidden tokens) in a row of `length` tokens: at least one of each, and one token left to see."""
        noise = min(max(round(length * self.corruption_rate), 1), length - 1)
        spans = min(max(round(noise / self.mean_span_length), 1), noise, length - noise)
        if spans > self.sentinels:
            raise PipelineError(
                f"pretrain.sequence_length {length} at corruption_rate {self.corruption_rate} and mean_span_length "
                f"{self.mean_span_length} needs {spans} sentinels, the tokenizer has {self.sentinels}: "
                "shorten the sequences or lengthen the spans"
            )
        return spans, noise

    def __call__(self, tokens_BL: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        """Ids (B, L ≥ 2) → source (B, L - noise + spans + 1), target (B, noise + spans + 1), both ending in </s>."""
        rows, length = tokens_BL.shape
        spans, noise = self.spans_and_noise(length)
        # Seen and hidden stretches alternate, as in T5: a row's first token is never hidden, its last always.
        lengths = np.stack(
            [_random_parts(rng, rows, length - noise, spans), _random_parts(rng, rows, noise, spans)], axis=2
        ).reshape(rows, 2 * spans)
        ends = np.cumsum(lengths, axis=1)
        stretch_BL = (np.arange(length)[None, :, None] >= ends[:, None, :]).sum(axis=2)
        hidden_BL = stretch_BL % 2 == 1
        starts_BL = hidden_BL & ~np.pad(hidden_BL, ((0, 0), (1, 0)))[:, :-1]
        sentinel_BL = self.first_sentinel + stretch_BL // 2

        source = np.where(starts_BL, sentinel_BL, tokens_BL)[~hidden_BL | starts_BL].reshape(rows, -1)
        # Each position offers (its sentinel, its token); a span's start takes both, the rest of the span the token.
        offered = np.stack([sentinel_BL, tokens_BL], axis=2)
        target = offered[np.stack([starts_BL, hidden_BL], axis=2)].reshape(rows, -1)
        eos_B1 = np.full((rows, 1), self.eos_id)
        return np.concatenate([source, eos_B1], axis=1), np.concatenate([target, eos_B1], axis=1)


def _random_parts(rng: np.random.Generator, rows: int, total: int, parts: int) -> Ids:
    """(rows, parts): in each row `total` cut into `parts` positive integers, every such cut equally likely."""
    keys = rng.random((rows, total - 1))  # the cuts are where the smallest keys are
    cuts = np.argpartition(keys, parts - 1, axis=1)[:, : parts - 1] if parts < total else np.argsort(keys, axis=1)
    cuts = np.sort(cuts, axis=1)
    edges = np.concatenate([np.zeros((rows, 1), np.int64), cuts + 1, np.full((rows, 1), total)], axis=1)
    return np.diff(edges, axis=1)
