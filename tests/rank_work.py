"""One process of a training on several, forked."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import hardware, pairs_split, recipe, tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.callbacks import Checkpoints
from lightning_modules.checkpoint_files import newest_checkpoint
from lightning_modules.datamodule import TextDataModule
from lightning_modules.hardware import choose
from lightning_modules.lightning import pl
from lightning_modules.model_folder import Model, new_model
from lightning_modules.module import TransformerModule
from lightning_modules.parallel import whole_state
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer.embeddings import CharacterEmbedding
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import Encoder
from lightning_modules.vocabulary import token_bytes


class Losses(pl.Callback):
    """The loss and the gradient's length of each step, and the losses of each validation."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            loss = trainer.strategy.reduce(pl_module.train_loss, reduce_op="mean")
            self.rows.append([float(loss), float(pl_module.gradient_norm)])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.rows.append(list(pl_module.validation_losses.values()))


class Wire(pl.Callback):
    """Of each batch the numbers in the largest tensor sent while it is learnt, and in a rank's share of its logits."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.heard = Heard()
        self.heard.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.heard.__exit__(None, None, None)
        logits = batch.targets * pl_module.model.config.vocab_size // trainer.world_size
        self.rows.append([max(self.heard.sizes), logits])


class Heard(TorchDispatchMode):
    """Sees every call of torch, and notes the sizes of the tensors that processes exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        if "c10d" in func.namespace:
            tensors = (leaf for leaf in tree_leaves((args, found)) if isinstance(leaf, torch.Tensor))
            self.sizes += [tensor.numel() for tensor in tensors]
        return found


def work(folder: Path, plan: dict[str, Any]) -> None:
    """One process of a training; the first writes losses and weights."""
    split = pairs_split(folder / f"data-{os.getpid()}", **plan["model"])
    model: Model = new_model(split.config, 0)
    if isinstance(model.embedding, CharacterEmbedding):
        model.embedding.spell(token_bytes(tokenizer()))
    if isinstance(model, Encoder):
        model = SpanReader(model)
    module = TransformerModule(model, recipe(steps=8, ema_decay=plan["ema_decay"], label_smoothing=0.1))
    used = hardware(**{key: plan[key] for key in ("devices", "num_nodes", "strategy")})
    losses, wire = Losses(), Wire()
    callbacks = [losses, *([wire] if plan["listen"] else []), Checkpoints(folder, 2, 2, 0, 0)]
    trainer = build_trainer(used, choose(used, 32, False), plan["steps"], plan["accumulate"], 3, 1.0, callbacks)
    data = TextDataModule(split, split)
    trainer.fit(module, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
    weights = whole_state(module.model)
    if trainer.is_global_zero:
        save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "weights.safetensors")
        (folder / "losses.json").write_text(json.dumps(losses.rows))
        (folder / "wire.json").write_text(json.dumps(wire.rows))
