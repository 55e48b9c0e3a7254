"""The gate of every export and import: two networks must agree on the same texts, or nothing is kept.

Costs a handful of forward passes of both, with sources and targets of several lengths in one padded batch.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.errors import PipelineError
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder

LARGEST_DIFFERENCE = 1e-4  # of logits, in float32
LONGEST = 256  # tokens of the longest row that is compared
TEXTS = (
    "Rain.",
    "The ferry leaves at seven.",
    "Whoever reads this sentence has read eleven words of it by now, “quotation marks” and 3.14159 included.",
    "Die Fähre fährt um sieben; 渡し船は七時に出ます。 def leave(at: int = 7) -> None: ...",
    "A long text is compared as well, because positions differ most where they are far from the beginning. " * 12,
)


def require_parity(ours: Encoder | Decoder | EncoderDecoder, theirs: Any, rows: list[list[int]], what: str) -> float:
    """The largest difference between two networks' logits on the rows; `what` says which networks.

    Raises PipelineError where it is greater than LARGEST_DIFFERENCE, or no number.
    """
    difference = largest_difference(ours.float().eval(), theirs.float().eval(), rows)
    if not difference <= LARGEST_DIFFERENCE:
        raise PipelineError(
            f"{what}: logits differ by up to {difference:.2g}, more than {LARGEST_DIFFERENCE:g}; nothing was kept"
        )
    return difference


@torch.inference_mode()
def largest_difference(ours: Encoder | Decoder | EncoderDecoder, theirs: Any, rows: list[list[int]]) -> float:
    """The largest absolute difference of logits where tokens are real. Rows are ids without padding."""
    config = ours.config
    pad = config.pad_id if config.pad_id < theirs.config.vocab_size else config.eos_id  # a new <pad> is ours alone
    longest = max(1, min(LONGEST, config.max_length // 2))
    rows = [row[:longest] for row in rows if row]
    target_BT, written_BT = _padded(_shifted(rows, config.bos_id), pad)
    if isinstance(ours, Encoder):
        source_BS, real_BS = _padded(rows, pad)
        theirs_BSV = theirs(input_ids=source_BS, attention_mask=real_BS.long()).logits
        return _difference(ours.logits(ours(source_BS, real_BS)), theirs_BSV, real_BS)
    if isinstance(ours, EncoderDecoder):
        source_BS, real_BS = _padded(rows, pad)
        theirs_BTV = theirs(
            input_ids=source_BS, attention_mask=real_BS.long(), decoder_input_ids=target_BT, use_cache=False
        ).logits
        return _difference(ours.logits(ours(source_BS, target_BT, real_BS)), theirs_BTV, written_BT)
    alone_BTV = theirs(input_ids=target_BT, attention_mask=written_BT.long(), use_cache=False).logits
    alone = _difference(ours.logits(ours(target_BT[:, :0], target_BT)), alone_BTV, written_BT)
    # Sources one by one: padded on the left, rotary angles are those of other columns, and rounded otherwise.
    return max(alone, *(_continued(ours, theirs, row, target) for row, target in zip(rows, target_BT, strict=True)))


def _continued(ours: Decoder, theirs: Any, source: list[int], target_T: Tensor) -> float:
    """The difference on a target that follows a source."""
    source_1S, target_1T = torch.tensor([source]), target_T[None]
    theirs_1TV = theirs(input_ids=torch.cat([source_1S, target_1T], dim=1), use_cache=False).logits[:, len(source) :]
    ours_1TV = ours.logits(ours(source_1S, target_1T))
    return _difference(ours_1TV, theirs_1TV, torch.ones_like(target_1T, dtype=torch.bool))


def _shifted(rows: list[list[int]], bos: int) -> list[list[int]]:
    """The rows as targets: behind the token that a decoder reads first, and moved on by one, so that lengths mix."""
    return [[bos, *row][: len(row)] for row in (*rows[1:], rows[0])]


def _padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids (B, L), and (B, L) true where they are not padding."""
    longest = max(map(len, rows))
    ids = [row + [pad] * (longest - len(row)) for row in rows]
    real = [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(real)


def _difference(one_BLV: Tensor, other_BLV: Tensor, real_BL: Tensor) -> float:
    return float((one_BLV[..., : other_BLV.shape[-1]] - other_BLV)[real_BL].abs().max())
