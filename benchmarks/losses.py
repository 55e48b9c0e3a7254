"""The losses of the first steps of small trainings, to the last bit: a refactoring must not change one of them.

    python -m benchmarks.losses > before      # then change the code
    python -m benchmarks.losses | diff before -

Prints a line a training: architecture, objective, and 20 losses as hexadecimal numbers. 20 s on two cores. Bits depend
on the machine and on torch, so compare on one machine only.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from lightning_modules.callbacks import step_done
from lightning_modules.datamodule import TextDataModule
from lightning_modules.hardware import Hardware, choose
from lightning_modules.model_folder import new_model
from lightning_modules.module import Recipe, TransformerModule
from lightning_modules.objectives import CausalLM, MaskedLM, Objective, SpanCorruption
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import StoreMeta, TokenStore, write_meta, write_shard
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer.presets import preset

VOCAB, LENGTH, ROWS, STEPS = 1024, 64, 8, 20
TRAININGS: dict[str, tuple[Objective, str]] = {
    "small-encoder-decoder": (SpanCorruption(0.3, 3.0, 5, 64, 2), "joined"),
    "small-decoder": (CausalLM(), "best_fit"),
    "small-encoder": (MaskedLM(0.15, 4, 0, 69, VOCAB, None), "best_fit"),
}


class _Losses(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        assert isinstance(pl_module, TransformerModule)
        if step_done(trainer, rest[-1]):
            self.seen.append(float(pl_module.train_loss))


def losses(name: str, folder: Path) -> list[float]:
    """The losses of the preset's training on random documents, dropout and accumulation included."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(69, VOCAB, size) for size in rng.integers(1, 200, 400)]
    documents, tokens = write_shard(folder, 0, (text.tolist() for text in texts), "uint16")
    write_meta(folder, StoreMeta("uint16", VOCAB, "", 1, documents, tokens, tokens))
    objective, packing = TRAININGS[name]
    config = preset(name, vocab_size=VOCAB, dropout=0.1, max_length=2 * LENGTH)
    rows = TextRows(TokenStore(folder), config, objective, LENGTH, ROWS, 1, 1, packing)
    recipe = Recipe(STEPS, "adamw", 1e-3, "cosine", 5, 0.01, 0.1, 0.0, 1)
    hardware, seen = Hardware("cpu", 1, 1, "auto", "32-true", False, 1), _Losses()
    trainer = build_trainer(hardware, choose(hardware, config.d_model, True), STEPS, 2, STEPS, 1.0, [seen])
    trainer.fit(TransformerModule(new_model(config, 1), recipe), TextDataModule(rows, rows))
    return seen.seen


def main() -> None:
    """Prints them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in TRAININGS:
        with tempfile.TemporaryDirectory() as folder:
            print(name, *(loss.hex() for loss in losses(name, Path(folder))))


if __name__ == "__main__":
    main()
