"""Which records stand in which batch, and how their ids are laid out: pure functions, the same on every rank.

Pairs of similar length share a batch, and each batch holds about the same number of tokens. Which records a batch has
does not depend on the number of ranks that share it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_modules.transformer.config import TransformerConfig

Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """What a model reads, and what it is to predict (<pad> where nothing is; a span: its first and last column).

    `real` is true where the source is not padding; None where nothing is. `documents` numbers the documents packed into
    the rows, of each column of source and target; None where none are. `targets` counts what is to be predicted in all
    of an optimiser's step, of which this is the share of one rank, or of one of its accumulated parts; `padding` counts
    the columns here that hold none of the text.
    """

    source_BS: Tensor
    target_BT: Tensor
    real_BS: Tensor | None
    documents: tuple[Tensor, Tensor] | None
    targets: int
    padding: int


NO_SPAN = -100  # torch's own mark of a target that does not count


def length_batches(
    source_lengths: Indices, target_lengths: Indices, batch_tokens: int, rng: np.random.Generator | None
) -> list[Indices]:
    """Cuts all records into batches of at most `batch_tokens` tokens, padding included; with `rng` in random order.

    Records are sorted by classes of length: of targets, half an octave wide where they are as long as sources and
    wider the less they count, and of sources within them, an eighth. Random ties and, each epoch anew, random bounds of
    the classes make other batches of them. Every record stands in exactly one batch. One longer than `batch_tokens` has
    a batch of its own.
    """
    count = len(source_lengths)
    ties, bounds = (rng.random(count), rng.random(2)) if rng else (np.arange(count), np.zeros(2))
    # Beside long sources, short targets of all lengths cost little padding; batches of like ones would have few and
    # many predictions by turns, from which a model learns worse (docs/experiments.md).
    classes = round(4 * target_lengths.sum() / max(int(target_lengths.sum() + source_lengths.sum()), 1))
    target_class = np.floor(classes * np.log2(np.maximum(target_lengths, 1)) + bounds[0]).astype(np.int64)
    source_class = np.floor(8 * np.log2(np.maximum(source_lengths, 1)) + bounds[1]).astype(np.int64)
    # Sources rise and fall by turns, so that those on both sides of a target's bound are about equally long.
    turning = np.where(target_class % 2, -source_class, source_class)
    order = np.lexsort((ties, turning, target_class))
    cuts, longest_source, longest_target = [0], 0, 0
    lengths = zip(source_lengths[order].tolist(), target_lengths[order].tolist(), strict=True)
    for place, (source, target) in enumerate(lengths):
        longest_source, longest_target = max(longest_source, source), max(longest_target, target)
        if place > cuts[-1] and (place + 1 - cuts[-1]) * (longest_source + longest_target) > batch_tokens:
            cuts.append(place)
            longest_source, longest_target = source, target
    batches = np.split(order, cuts[1:])
    return [batches[i] for i in rng.permutation(len(batches))] if rng else batches


def dealt(records: npt.NDArray[Any], part: int, parts: int) -> npt.NDArray[Any]:
    """Every `parts`-th record. Where there are too few, the first: the caller sees to it that it counts for nothing."""
    return records[part::parts] if part < len(records) else records[:1]


def pad(rows: Sequence[Sequence[int] | npt.NDArray[np.int64]], pad_id: int) -> npt.NDArray[np.int64]:
    """Rows of different lengths → (B, longest), padded at the end."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), pad_id, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def source_tensors(source_BS: Indices, pad_id: int, pad_left: bool) -> tuple[Tensor, Tensor | None]:
    """(Ids, which of them are real), from ids padded at the end; with `pad_left` the padding is moved to the beginning.

    A decoder reads source and target as one sequence: there they must meet.
    """
    real_BS = source_BS != pad_id
    if np.count_nonzero(real_BS) == real_BS.size:
        return torch.from_numpy(source_BS), None
    if pad_left:
        order_BS = np.argsort(real_BS, axis=1, kind="stable")
        source_BS, real_BS = (np.take_along_axis(side_BS, order_BS, axis=1) for side_BS in (source_BS, real_BS))
    return torch.from_numpy(source_BS), torch.from_numpy(real_BS)


def make_batch(
    source_BS: Indices,
    target_BT: Indices,
    config: TransformerConfig,
    targets: int | None = None,
    documents: tuple[Indices, Indices] | None = None,
) -> Batch:
    """A batch of ids padded at the end, as the architecture of `config` reads them; `targets`: its own if not given."""
    source, real = source_tensors(source_BS, config.pad_id, config.architecture == "decoder")
    numbers = None if documents is None else (torch.from_numpy(documents[0]), torch.from_numpy(documents[1]))
    own = int(np.count_nonzero(target_BT != config.pad_id))
    empty = 0 if real is None else real.numel() - int(real.sum())
    if config.architecture != "encoder":  # whose target is no text: it marks what is to be predicted
        empty += target_BT.size - own
    return Batch(source, torch.from_numpy(target_BT), real, numbers, own if targets is None else targets, empty)
