"""Our contestants: the module under the trainer as stages/training.py builds it, and a bare loop on the same model."""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from benchmarks.peer_tools import (
    EOS,
    FIRST_REGULAR,
    GRADIENT_CLIP,
    MASK,
    MASKED_SHARE,
    PAD,
    Clock,
    Contestant,
    Ids,
    Work,
    documents,
    pairs,
)
from lightning_modules.batching import Batch
from lightning_modules.callbacks import Checkpoints, StopOnSignal
from lightning_modules.datamodule import Batches, TextDataModule
from lightning_modules.flops import Shape, step_flops
from lightning_modules.guards import StepGuard
from lightning_modules.hardware import Hardware, choose
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import new_model
from lightning_modules.module import Recipe, TransformerModule
from lightning_modules.objectives import CausalLM, MaskedLM, Objective, SpanCorruption
from lightning_modules.optim import OPTIMIZERS
from lightning_modules.telling import Telling
from lightning_modules.text_pairs import TextPairs
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import StoreMeta, TokenStore, token_dtype, write_meta, write_shard
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer.attention import expect_same_shapes
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.presets import preset
from stages.console import progress

NEVER = 10**9  # steps
_PRESETS = {"decoder": "llama-style", "masked": "bert-base", "pairs": "vaswani-base", "spans": "vaswani-base"}


def config(work: Work, parts: str = "", **changes: Any) -> TransformerConfig:
    """The architecture that the peers of this work have, too; `parts`: of another preset than the work's own."""
    parts = parts or _PRESETS[work.kind]
    return preset(
        parts,
        vocab_size=work.vocab_size,
        d_model=work.d_model,
        heads=work.heads,
        key_value_heads=work.heads,
        d_ff=work.gated_d_ff if parts == "llama-style" else work.d_ff,
        encoder_layers=0 if work.kind == "decoder" else work.layers,
        decoder_layers=0 if work.kind == "masked" else work.layers,
        max_length=work.length,
        dropout=0.0,
        attention_dropout=0.0,
        **changes,
    )


def make(work: Work, parts: str = "", **changes: Any) -> nn.Module:
    """Our model."""
    return new_model(config(work, parts, **changes), work.seed)


def _write_store(folder: Path, texts: Sequence[Ids], work: Work) -> TokenStore:
    folder.mkdir(parents=True)
    dtype = token_dtype(work.vocab_size)
    count, tokens = write_shard(folder, 0, texts, dtype)  # type: ignore[arg-type]
    write_meta(folder, StoreMeta(dtype, work.vocab_size, "0" * 64, 1, count, tokens, utf8_bytes=1))
    return TokenStore(folder)


def split(work: Work, folder: Path, packing: str = "best_fit") -> Batches:
    """The batches of our stages, from token stores under `folder`."""
    if work.kind == "pairs":
        for name, side in zip(("source", "target"), pairs(work), strict=True):
            _write_store(folder / name, side, work)
        return TextPairs(folder, config(work), work.batch_tokens, work.length, work.length, work.seed)
    objectives: dict[str, Objective] = {
        "decoder": CausalLM(),
        "masked": MaskedLM(MASKED_SHARE, MASK, PAD, FIRST_REGULAR, work.vocab_size, None),
        "spans": SpanCorruption(MASKED_SHARE, 3.0, FIRST_REGULAR, work.length, EOS),
    }
    objective = objectives[work.kind]
    store = _write_store(folder / "texts", documents(work), work)
    return TextRows(store, config(work), objective, work.length, work.rows, 1, work.seed, packing)


def real_tokens(batch: Batch, work: Work) -> int:
    """Those of rows that hold text; of pairs, those to be written."""
    return batch.targets if work.kind == "pairs" else work.rows * work.length - batch.padding


def flops_per_token(work: Work, parts: str = "") -> float:
    """Of a training step, as `step_flops` counts them; of rows alone. Of a masked model a share is predicted."""
    tokens = work.rows * work.length
    decodes = work.kind == "decoder"
    source, target, predicted = (0, work.length, tokens) if decodes else (work.length, 0, int(tokens * MASKED_SHARE))
    return step_flops(config(work, parts), Shape(work.rows, source, target, predicted)) / tokens


class _Ticks(pl.Callback):
    def __init__(self, work: Work, clock: Clock) -> None:
        self.work, self.clock = work, clock

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TransformerModule)
        self.clock.batch(real_tokens(batch, self.work))
        self.clock.tick(pl_module.train_loss)


def recipe(work: Work, steps: int) -> Recipe:
    """AdamW."""
    return Recipe(
        steps=steps,
        optimizer="adamw",
        learning_rate=work.learning_rate,
        schedule="linear",
        warmup_steps=1,
        weight_decay=0.01,
        label_smoothing=0.0,
        ema_decay=0.0,
        seed=work.seed,
    )


def trainer(
    folder: Path,
    steps: int,
    tell_every: int,
    also: list[pl.Callback],
    precision: str = "32-true",
    width: int = 0,
    accelerator: str = "cpu",
) -> pl.Trainer:
    """The trainer of stages/training.py with its callbacks; nothing is saved or validated in so few steps."""
    hardware = Hardware(
        accelerator=accelerator,
        devices=1,
        num_nodes=1,
        strategy="auto",
        precision=precision,
        compile=False,
        threads=torch.get_num_threads(),
    )
    callbacks = [
        Telling("benchmark", steps, tell_every, progress, None),
        Checkpoints(folder, every=NEVER, keep=1, average=0, patience=0),
        StepGuard("benchmark", folder, "ignore", every=NEVER, keep=1, log=None),
        StopOnSignal(folder, keep=1),
        *also,
    ]
    with patch("lightning_modules.trainer.keep_memory"):  # the clock says when
        return build_trainer(
            hardware,
            choose(hardware, width, same_shapes=False),
            steps=steps,
            accumulate=1,
            validate_every=NEVER,
            gradient_clip=GRADIENT_CLIP,
            callbacks=callbacks,
        )


def train(model: nn.Module, work: Work, clock: Clock, packing: str = "best_fit", precision: str = "") -> None:
    """As the stages do; in the work's precision where none is told."""
    precision = precision or ("bf16-mixed" if work.bf16 else "32-true")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module = TransformerModule(model, recipe(work, clock.total))  # type: ignore[arg-type]
        batches = split(work, folder, packing)
        expect_same_shapes(model, work.kind != "pairs")
        fit = trainer(folder / "checkpoints", clock.total, NEVER, [_Ticks(work, clock)], precision, work.d_model)
        fit.fit(module, TextDataModule(batches, batches))


def train_bare(model: nn.Module, work: Work, clock: Clock) -> None:
    """The same model, batches and optimiser in a loop of eight lines."""
    with tempfile.TemporaryDirectory() as name:
        batches = split(work, Path(name))
        optimizer = OPTIMIZERS["adamw"](model, work.learning_rate, 0.01)
        expect_same_shapes(model, work.kind != "pairs")
        model.train()
        for number in range(clock.total):
            batch = batches.training_batch(number, 0, 1)
            clock.batch(real_tokens(batch, work))
            loss = bare_step(model, batch, optimizer, work.bf16)
            clock.tick(loss)


def bare_step(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, bf16: bool = False) -> Tensor:
    """One optimiser step; returns the loss in nats per target."""
    with torch.autocast(batch.target_BT.device.type, torch.bfloat16, enabled=bf16):
        nats, _ = batch_loss(model, batch, label_smoothing=0.0)  # type: ignore[arg-type]
    loss = nats / batch.targets
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def length_batches(work: Work) -> Iterator[tuple[Batch, int]]:
    """Our batches of pairs and their real target tokens, for a peer's model."""
    with tempfile.TemporaryDirectory() as name:
        batches, number = split(work, Path(name)), 0
        while True:
            batch = batches.training_batch(number, 0, 1)
            yield batch, batch.targets
            number += 1


OURS = Contestant("ours", make, train)
OURS_JOINED = Contestant("ours, rows joined as theirs", make, partial(train, packing="joined"))
# Learned positions, GELU and LayerNorm: fewer passes over memory than rotary positions, gates and RMSNorm.
OURS_GPT = Contestant("ours with GPT-2's parts", partial(make, parts="gpt2"), train)
OURS_NANOGPT = Contestant(
    "ours with nanoGPT's parts", partial(make, parts="gpt2", activation="gelu", bias=False), train
)
OURS_BY_HARDWARE = Contestant("ours, precision by hardware", make, partial(train, precision="auto"))
OURS_BARE = Contestant("ours, bare loop", make, train_bare)
