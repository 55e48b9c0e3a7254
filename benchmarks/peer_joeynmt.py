"""JoeyNMT (Kreutzer et al. 2019, arXiv:1907.12484), by its own TrainManager, in an environment of its own: it pins old
packages. Such an environment:

    python -m venv FOLDER && FOLDER/bin/pip install --no-deps joeynmt && FOLDER/bin/pip install torch numpy datasets \\
        sacrebleu tensorboard subword-nmt sentencepiece sacremoses seaborn pandas matplotlib packaging pyyaml
    python -m benchmarks.peers pairs --joeynmt-python FOLDER/bin/python

Its batches are random ones of so many pairs, which is its default; it has no grouping by length.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peer_tools import (
    GRADIENT_CLIP,
    Clock,
    Contestant,
    Work,
    pairs,
)

NEVER = 10**9  # steps
SPECIAL = 4  # entries of its vocabulary


def _settings(work: Work, folder: Path) -> dict[str, Any]:
    stack = {
        "type": "transformer",
        "num_layers": work.layers,
        "num_heads": work.heads,
        "embeddings": {"embedding_dim": work.d_model, "scale": True, "dropout": 0.0},
        "hidden_size": work.d_model,
        "ff_size": work.d_ff,
        "dropout": 0.0,
        "layer_norm": "post",
    }
    side = {"level": "word", "voc_file": str(folder / "vocabulary.txt")}
    return {
        "name": "benchmark",
        "model_dir": str(folder),
        "use_cuda": False,
        "random_seed": work.seed,
        "data": {
            "train": str(folder / "train"),
            "dataset_type": "plain",
            "src": {"lang": "source", **side},
            "trg": {"lang": "target", **side},
            "special_symbols": {},  # it numbers its own four
        },
        "testing": {},
        "training": {
            "optimizer": "adamw",
            "learning_rate": work.learning_rate,
            "learning_rate_min": 0.0,
            "scheduling": "warmupinversesquareroot",  # one of those that torch 2.13 still takes
            "learning_rate_warmup": 1,
            "clip_grad_norm": GRADIENT_CLIP,
            "normalization": "tokens",
            "batch_size": work.rows,
            "shuffle": True,
            "epochs": NEVER,
            "logging_freq": NEVER,
            "validation_freq": NEVER,
        },
        "model": {
            "initializer": "xavier_uniform",
            "embed_initializer": "xavier_uniform",
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": stack,
            "decoder": stack,
        },
    }


def _prepared(work: Work, folder: Path) -> tuple[Any, nn.Module, Any]:
    """(Arguments, model, training data), as its own training program makes them from files."""
    from joeynmt.config import parse_global_args  # type: ignore[import-not-found, unused-ignore]
    from joeynmt.prediction import prepare  # type: ignore[import-not-found, unused-ignore]

    logging.getLogger("joeynmt").setLevel(logging.ERROR)
    words = [f"t{number}" for number in range(work.vocab_size)]
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in words[SPECIAL:]))
    for name, side in zip(("source", "target"), pairs(work), strict=True):
        lines = (" ".join(words[number] for number in ids.tolist()) for ids in side)
        (folder / f"train.{name}").write_text("".join(f"{line}\n" for line in lines))
    arguments = parse_global_args(_settings(work, folder), rank=0, mode="train")
    model, train_data, _, _ = prepare(arguments, rank=0, mode="train")
    return arguments, model, train_data


def make(work: Work) -> nn.Module:
    """Its Transformer, after the 2017 paper."""
    with tempfile.TemporaryDirectory() as folder:
        return _prepared(work, Path(folder))[1]


def train(model: nn.Module, work: Work, clock: Clock) -> None:
    """Under its TrainManager."""
    from joeynmt.config import set_validation_args
    from joeynmt.training import TrainManager  # type: ignore[import-not-found, unused-ignore]

    class Timed(TrainManager):  # type: ignore[misc, no-any-unimported, unused-ignore]
        """Tells the clock when the next step begins, which is when all of the last has ended."""

        last: tuple[int, float] | None = None

        def _train_step(self, batch: Any) -> Any:
            if self.last is not None:
                clock.batch(self.last[0])
                clock.tick(torch.tensor(self.last[1]))
            loss, correct = super()._train_step(batch)
            self.last = batch.ntokens, loss
            return loss, correct

        def _save_checkpoint(self, *_: Any) -> None:
            """Nothing is saved at the end."""

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments, _, data = _prepared(work, folder)
        manager = Timed(
            rank=0,
            model=model,
            model_dir=folder,
            device=torch.device("cpu"),
            autocast={"device_type": "cpu", "enabled": False},
            seed=work.seed,
            train_args=arguments.train._replace(max_updates=clock.total + 1),
            dev_args=set_validation_args(arguments.test),
        )
        manager.train_and_validate(train_data=data, valid_data=data)


JOEYNMT = Contestant("JoeyNMT, random batches", make, train, ("joeynmt",))
