"""What all contestants of `benchmarks.peers` share: the work, its data, the clock, a plain training loop.

Data is drawn, not read, so that everyone times the same on any machine: ids by Zipf's law, documents and pairs with the
log-normal lengths of the pipeline's own texts (documentation; user-interface strings from English to German, in tokens
of an 8 k vocabulary). Drawing takes tenths of a second. Needs numpy and torch alone, for a contestant in an environment
of its own.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.allocator import keep_memory

Ids = npt.NDArray[np.int64]
PAD, BOS, EOS, UNKNOWN, MASK, FIRST_REGULAR = range(6)
MASKED_SHARE, GRADIENT_CLIP = 0.15, 1.0
ZIPF_EXPONENT = 1.1


@dataclass(frozen=True)
class Work:
    """What everyone does. No dropout, no label smoothing, fp32 or bf16, AdamW, gradients clipped to norm 1."""

    kind: str  # decoder: causal language model; masked: BERT's; pairs, spans: encoder–decoder, on pairs or T5's spans
    layers: int  # of each stack
    d_model: int
    heads: int
    d_ff: int  # inner width of a plain feed-forward
    gated_d_ff: int  # of a gated one, for the same number of parameters
    length: int  # tokens in a row; of pairs, in the longest source and target
    rows: int  # in a batch; of pairs, in the batches of those who count them
    batch_tokens: int  # of our batches of pairs, source and target, padding included: as many pairs on average
    warm_steps: int
    steps: int  # that are timed
    vocab_size: int = 8192
    tokens: int = 2**18  # of the data
    learning_rate: float = 1e-3
    seed: int = 1
    bf16: bool = False  # autocast for everyone, rather than fp32


WORKS = {
    "decoder": Work("decoder", 6, 320, 5, 1280, 860, 512, 8, 0, warm_steps=2, steps=4),
    "masked": Work("masked", 6, 320, 5, 1280, 860, 128, 32, 0, warm_steps=2, steps=6),
    "pairs": Work("pairs", 3, 256, 4, 1024, 683, 128, 64, 2200, warm_steps=4, steps=16),
}


@dataclass
class Clock:
    """Called at the end of every optimiser step. Times `steps` with the C allocator as it is, then as many with
    `keep_memory`, each after `warm_steps`. A contestant that makes batches ahead tells of each as it makes it.
    """

    work: Work
    losses: list[float] | None = None  # where not None, contestants add the loss of each step
    _tokens: deque[int] = field(default_factory=deque)
    _ends: list[float] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)

    @property
    def phase(self) -> int:
        """Steps with one kind of allocator."""
        return self.work.warm_steps + self.work.steps

    @property
    def total(self) -> int:
        """Steps to be made."""
        return 2 * self.phase

    def batch(self, tokens: int) -> None:
        """The next batch has so many real (target) tokens."""
        self._tokens.append(tokens)

    def tick(self, loss: Tensor | None = None) -> None:
        """A step has ended."""
        if self.losses is not None and loss is not None:
            self.losses.append(float(loss))
        self._counts.append(self._tokens.popleft())
        self._ends.append(time.perf_counter())
        if len(self._ends) == self.phase:
            keep_memory()

    def tokens_per_second(self) -> tuple[float, float]:
        """With the allocator as it is, and with memory kept."""
        rates = []
        for first in (self.work.warm_steps, self.phase + self.work.warm_steps):
            last = first + self.work.steps
            seconds = self._ends[last - 1] - self._ends[first - 1]
            rates.append(sum(self._counts[first:last]) / seconds)
        return rates[0], rates[1]


@dataclass(frozen=True)
class Contestant:
    """A name, a model, a way to train it until the clock's steps are made, and packages that it needs."""

    name: str
    make: Callable[[Work], nn.Module]
    train: Callable[[nn.Module, Work, Clock], None]
    needs: tuple[str, ...] = ()


def zipf_ids(rng: np.random.Generator, count: int, vocab_size: int) -> Ids:
    """Regular ids, the n-th most frequent in proportion to 1/n^1.1."""
    weights = 1 / np.arange(1, vocab_size - FIRST_REGULAR + 1) ** ZIPF_EXPONENT
    cumulative = np.cumsum(weights) / weights.sum()
    return FIRST_REGULAR + np.searchsorted(cumulative, rng.random(count)).clip(0, len(weights) - 1).astype(np.int64)


def documents(work: Work) -> list[Ids]:
    """Texts, of 107 tokens on average."""
    rng = np.random.default_rng((work.seed, 0))
    lengths = np.maximum(rng.lognormal(4.04, 1.05, work.tokens // 107), 1).astype(int)
    return np.split(zipf_ids(rng, int(lengths.sum()), work.vocab_size), np.cumsum(lengths)[:-1])


def rows(work: Work) -> Ids:
    """The same, each with </s> at its end, joined and cut: (rows, work.length)."""
    joined = np.concatenate([part for document in documents(work) for part in (document, [EOS])])
    return joined[: len(joined) // work.length * work.length].reshape(-1, work.length).astype(np.int64)


def pairs(work: Work) -> tuple[list[Ids], list[Ids]]:
    """Sources and targets without </s>, 10 and 16 tokens on average: targets are 1.6 times as long, give or take."""
    rng = np.random.default_rng((work.seed, 1))
    count = work.tokens // 32
    source_lengths = rng.lognormal(2.01, 0.73, count)
    target_lengths = source_lengths * rng.lognormal(0.44, 0.28, count)
    sides = []
    for lengths in (source_lengths, target_lengths):
        cut = lengths.round().astype(int).clip(1, work.length - 1)
        sides.append(np.split(zipf_ids(rng, int(cut.sum()), work.vocab_size), np.cumsum(cut)[:-1]))
    return sides[0], sides[1]


def parameters(model: nn.Module) -> int:
    """Trained ones, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def plain_loop(
    model: nn.Module, work: Work, clock: Clock, batches: Iterable[tuple[Any, int]], loss_of: Callable[[Any], Tensor]
) -> None:
    """Forward, backward, clip, fused AdamW, for endless `batches` of (batch, its real tokens)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.learning_rate, fused=True)
    model.train()
    for _, (batch, tokens) in zip(range(clock.total), batches, strict=False):
        clock.batch(tokens)
        with torch.autocast("cpu", torch.bfloat16, enabled=work.bf16):
            loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick(loss.detach())
