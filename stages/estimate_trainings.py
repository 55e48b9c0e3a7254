"""The trainings that params.yaml describes, before there is text or a tokenizer: their steps, and the shapes of their
batches. Costs the corruption of a few batches of random tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from lightning_modules.flops import Shape, batch_bytes, recomputed_flops, step_flops
from lightning_modules.token_store import TokenStore
from lightning_modules.transformer.config import TransformerConfig
from stages.params import Params
from stages.params_schema import TaskParams
from stages.params_schema import Training as Section

TOKENS, PRETRAIN = Path("data/tokens"), "pretrain"


@dataclass(frozen=True)
class Training:
    """One training of the pipeline. `shapes` are those of its batches with their weights, whose sum is 1."""

    name: str
    runs: int
    steps: int
    tokens: int  # a step: of text; of source and target, padding included
    section: Section
    config: TransformerConfig
    shapes: list[tuple[float, Shape]]
    largest: Shape

    @property
    def layers(self) -> int:
        """Of all stacks."""
        return sum(stack.layers for stack in self.largest.stacks(self.config))

    @cached_property
    def flops(self) -> float:
        """Of a step, on average, with what is computed twice."""
        again = recomputed_flops if self.section.recompute_activations else lambda *_: 0
        return sum(
            weight * (step_flops(self.config, shape) + again(self.config, shape)) for weight, shape in self.shapes
        )


def trainings(params: Params) -> list[Training]:
    """All trainings that params.yaml describes. Raises PipelineError where an objective does not fit the rows."""
    section, config = params.pretrain, params.model.config(vocab_size=params.tokenizer.vocab_size)
    found = []
    if section.steps:
        shapes = list(_pretraining_shapes(params, config))
        largest = max((shape for _, shape in shapes), key=partial(batch_bytes, config, half=False, gpu=True))
        tokens = section.batch_size * section.sequence_length
        found.append(Training(PRETRAIN, 1, section.steps, tokens, section, config, shapes, largest))
    tuned = replace(config, dropout=params.finetune.dropout)
    return found + [_finetuning(params, tuned, name, task) for name, task in params.tasks.items()]


def _pretraining_shapes(params: Params, config: TransformerConfig) -> Iterator[tuple[float, Shape]]:
    """What the objectives make of random rows: shapes do not depend on what the text says."""
    from lightning_modules.objectives import CausalLM, Denoising, MaskedLM, Objective, PrefixLM, SpanCorruption
    from stages.tokenizer_kinds import SENTINELS, SPECIAL_TOKENS

    section, entries, first = params.pretrain, config.vocab_size, len(SPECIAL_TOKENS)
    rate, mean, pad, end = section.corruption_rate, section.mean_span_length, config.pad_id, config.eos_id
    sentinels = SENTINELS if params.model.start_from is None else section.sequence_length  # its tokenizer's own
    makers: dict[str, Callable[[], Objective]] = {
        "causal_lm": CausalLM,
        "prefix_lm": PrefixLM,
        "masked_lm": lambda: MaskedLM(rate, 0, pad, first, entries, None),
        "span_corruption": lambda: SpanCorruption(rate, mean, first - SENTINELS, sentinels, end),
        "denoising": lambda: Denoising(rate, mean, 0, pad, end, np.zeros(entries, np.bool_)),
    }
    rng, drawn = np.random.default_rng(0), min(section.batch_size, 64)
    draws = {"prefix_lm": 256, "denoising": 8}  # of batches, where chance decides their shape
    total = sum(section.objective.values())
    for name, weight in section.objective.items():
        objective, count = makers[name](), draws.get(name, 1)
        rows_BL = rng.integers(first, entries, (drawn, section.sequence_length))
        for _ in range(count):
            source_BS, target_BT = objective(rows_BL, rng)
            predicted = int((target_BT != pad).sum()) * section.batch_size // drawn
            shape = Shape(section.batch_size, source_BS.shape[1], target_BT.shape[1], predicted)
            yield weight / total / count, shape


def _finetuning(params: Params, config: TransformerConfig, name: str, task: TaskParams) -> Training:
    """A task's fine-tuning and its control. Texts as long as those of data/tokens, else as long as they may be."""
    reads_spans = config.architecture == "encoder"
    longest = task.max_source_tokens, task.max_target_tokens
    usual = [
        longest[side] if mean is None else min(longest[side], round(mean) + 1)
        for side, mean in enumerate(_mean_length(TOKENS / name / "train" / part) for part in ("source", "target"))
    ]

    def shape(source: int, target: int) -> Shape:
        target = 2 if reads_spans else target  # the answer's first and last column
        rows = max(1, params.finetune.batch_tokens // (source + target))
        return Shape(rows, source, target, 0 if reads_spans else rows * target)

    typical, section = shape(*usual), params.finetune
    return Training(
        name, 2, task.steps, section.batch_tokens, section, config, [(1.0, typical)], largest=shape(*longest)
    )


def _mean_length(store: Path) -> float | None:
    """Tokens in a text of the store; None where it is not there yet."""
    if not (store / "meta.json").exists():
        return None
    meta = TokenStore(store).meta
    return meta.tokens / max(meta.documents, 1)
