"""From a trained model to tokens: greedy writing with cached keys and values, and pointing at spans."""

import torch
from torch import Tensor

from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import Decoder, EncoderDecoder


@torch.inference_mode()
def greedy(
    model: Decoder | EncoderDecoder,
    source_BS: Tensor,
    real_BS: Tensor | None,
    max_tokens: int,
    first_B1: Tensor | None = None,
) -> list[list[int]]:
    """The most probable token at each step until </s> or `max_tokens`; returns ids without <s> and </s>, a row each.

    Writing begins after <s>, or after the tokens `first`. Finished rows leave the batch, so the cost is that of the
    tokens written. Learned positions end at `max_length`, and so does what is written with them.
    """
    config = model.config
    state = model.begin(source_BS, real_BS)
    written: list[list[int]] = [[] for _ in source_BS]
    rows = list(range(len(source_BS)))
    last_B1 = torch.full((len(rows), 1), config.bos_id, device=source_BS.device) if first_B1 is None else first_B1
    room = config.max_length - state.start if config.positions == "learned" else max_tokens
    for _ in range(min(max_tokens, room)):
        hidden_B1D = model.step(last_B1, state)
        best_B = model.logits(hidden_B1D[:, -1]).argmax(-1)
        alive = (best_B != config.eos_id).nonzero().squeeze(1)
        if len(alive) < len(rows):
            rows, best_B = [rows[i] for i in alive.tolist()], best_B[alive]
            state.keep(alive)
        if not rows:
            break
        for row, token in zip(rows, best_B.tolist(), strict=True):
            written[row].append(token)
        last_B1 = best_B[:, None]
    return written


@torch.inference_mode()
def best_spans(model: SpanReader, source_BS: Tensor, real_BS: Tensor | None, max_tokens: int) -> list[list[int]]:
    """The ids of the most probable span of at most `max_tokens` tokens in each source."""
    start_BS, end_BS = model(source_BS, real_BS).unbind(dim=1)
    columns = source_BS.shape[1]
    in_order_SS = torch.ones(columns, columns, dtype=torch.bool, device=source_BS.device).triu().tril(max_tokens - 1)
    score_BSS = (start_BS[:, :, None] + end_BS[:, None, :]).masked_fill(~in_order_SS, float("-inf"))
    best_B = score_BSS.flatten(1).argmax(dim=1).tolist()
    spans = [divmod(best, columns) for best in best_B]
    return [source[start : end + 1].tolist() for source, (start, end) in zip(source_BS, spans, strict=True)]
