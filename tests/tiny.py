"""A tiny world for the tests of training: real sentences, a tokenizer, token stores, a small model."""

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lightning_modules.batching import Batch, make_batch
from lightning_modules.hardware import Hardware, choose
from lightning_modules.lightning import pl
from lightning_modules.model_folder import sha256
from lightning_modules.module import Recipe
from lightning_modules.named_objectives import make_objective
from lightning_modules.text_pairs import SpanPairs, TextPairs
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import StoreMeta, TokenStore, token_dtype, write_meta, write_shard
from lightning_modules.trainer import build_trainer
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import make_model

torch.set_num_threads(1)  # the machine's other cores may be busy; tiny matrices gain nothing from them

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *(f"<extra_id_{n}>" for n in range(64))]
FIRST_SENTINEL, EOS = 5, 2
VOCAB_SIZE = 600
_MODULES = (
    "argparse",
    "calendar",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "fractions",
    "heapq",
    "inspect",
    "optparse",
)


@cache
def sentences() -> tuple[str, ...]:
    """Some hundred distinct sentences that people wrote: the documentation of Python's own modules."""
    found: dict[str, None] = {}
    for name in _MODULES:
        module = importlib.import_module(name)
        for _, thing in sorted(inspect.getmembers(module), key=lambda pair: pair[0]):
            members = (
                [thing, *(member for _, member in inspect.getmembers(thing))] if inspect.isclass(thing) else [thing]
            )
            for member in members:
                text = inspect.getdoc(member) if callable(member) else None
                for sentence in re.split(r"(?<=[.!?])\s+|\n\n", text or ""):
                    words = sentence.split()
                    if 3 <= len(words) <= 25:
                        found[" ".join(words)] = None
    return tuple(found)


@cache
def tokenizer_json() -> str:
    """A byte-level BPE tokenizer with the pipeline's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return str(tokenizer.to_str())


def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json())


def encoded(texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer().encode_batch_fast(list(texts))]


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder / "tokenizer.json"


def write_store(folder: Path, documents: Sequence[Sequence[int]], digest: str = "f" * 64) -> TokenStore:
    """A store of two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype, half = token_dtype(VOCAB_SIZE), len(documents) // 2
    written = [write_shard(folder, n, part, dtype) for n, part in enumerate((documents[:half], documents[half:]))]
    tokens = sum(count for _, count in written)
    write_meta(folder, StoreMeta(dtype, VOCAB_SIZE, digest, 2, len(documents), tokens, utf8_bytes=1))
    return TokenStore(folder)


def write_data(root: Path, task: str = "translation") -> None:
    """`data/tokenizer` and `data/tokens` under `root`: texts, and a task: sentence → first words."""
    digest = sha256(write_tokenizer(root / "data/tokenizer"))
    texts = sentences()
    for split, part in (("train", texts[:300]), ("validation", texts[300:360])):
        ids = encoded(part)
        write_store(root / "data/tokens/pretraining" / split, ids, digest)
        write_store(root / "data/tokens" / task / split / "source", ids, digest)
        write_store(root / "data/tokens" / task / split / "target", [document[:5] for document in ids], digest)
        places = [[0, 0, len(document[:5]) - 1] for document in ids]
        write_store(root / "data/tokens" / task / split / "place", places, digest)


def rows_split(
    folder: Path, rows: int = 8, seed: int = 1, objective: str = "span_corruption", **changes: Any
) -> TextRows:
    """Rows of 32 tokens to corrupt for the model of `config(**changes)`, some 40 batches an epoch."""
    made = make_objective(
        {objective: 1.0}, corruption_rate=0.2, mean_span_length=2.0, whole_words=False, tokenizer=tokenizer()
    )
    return TextRows(write_store(folder, encoded(sentences()[:300])), config(**changes), made, 32, rows, 3, seed)


def pairs_split(folder: Path, seed: int = 1, **changes: Any) -> TextPairs:
    """A sentence and its first words; an epoch is a few batches. For an encoder, the words are pointed at."""
    ids, made = encoded(sentences()[:40]), config(**changes)
    write_store(folder / "source", ids)
    write_store(folder / "target", [document[:6] for document in ids])
    write_store(folder / "place", [[0, 0, len(document[:6]) - 1] for document in ids])
    return (SpanPairs if made.architecture == "encoder" else TextPairs)(folder, made, 600, 60, 20, seed)


def recipe(**changes: Any) -> Recipe:
    settings = {
        "steps": 10,
        "optimizer": "adamw",
        "learning_rate": 5e-3,
        "schedule": "inverse_sqrt",
        "warmup_steps": 3,
        "weight_decay": 0.01,
        "label_smoothing": 0.0,
        "ema_decay": 0.0,
        "seed": 1,
    }
    return Recipe(**(settings | changes))


def hardware(**changes: Any) -> Hardware:
    settings = {
        "accelerator": "cpu",
        "devices": "auto",
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "auto",
        "compile": "auto",
        "threads": 1,
    }
    return Hardware(**(settings | changes))


def trainer(
    steps: int, validate_every: int, clip: float, callbacks: list[pl.Callback], accumulate: int = 1, **changes: Any
) -> pl.Trainer:
    """As stages build it, on `hardware(**changes)`."""
    made = hardware(**changes)
    return build_trainer(made, choose(made, 32, True), steps, accumulate, validate_every, clip, callbacks)


def config(**changes: Any) -> TransformerConfig:
    shape: dict[str, Any] = {
        "architecture": "encoder_decoder",
        "vocab_size": VOCAB_SIZE,
        "d_model": 32,
        "heads": 4,
        "d_ff": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "dropout": 0.0,
        "norm": "pre",
        "max_length": 128,
    }
    return TransformerConfig(**(shape | changes))


def model(seed: int = 0, **changes: Any) -> Any:
    """A model whose every weight is random, biases and norms too, so that no test passes because something is zero."""
    torch.manual_seed(seed)
    made = make_model(config(**changes))
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def lively(seed: int = 0, **changes: Any) -> Any:
    """A random model that writes differently for different sources, and as trained ones do ends some texts early."""
    made = model(seed, **changes)
    looks = "attention" if made.config.architecture == "decoder" else "cross_attention"
    for name, parameter in made.named_parameters():
        if f"{looks}.query" in name or f"{looks}.key" in name:
            parameter.data *= 3.0
    made.embedding.weight_VD.data[EOS] *= 3.0
    return made


def reader(seed: int = 0, **changes: Any) -> SpanReader:
    """A random model that points at spans."""
    made = SpanReader(model(seed, architecture="encoder", **changes))
    torch.nn.init.normal_(made.ends.weight)
    return made.eval()


def batch(seed: int, source_lengths: Sequence[int], target_lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids, none of them special, padded at the end with 0."""
    rng = np.random.default_rng(seed)

    def side(lengths: Sequence[int]) -> torch.Tensor:
        ids = np.zeros((len(lengths), max(lengths)), np.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = rng.integers(5, VOCAB_SIZE, length)
        return torch.from_numpy(ids)

    return side(source_lengths), side(target_lengths)


def batch_for(made: Any, seed: int, source_lengths: Sequence[int], target_lengths: Sequence[int]) -> Batch:
    """The same, as the architecture of a model reads them."""
    source_BS, target_BT = batch(seed, source_lengths, target_lengths)
    return make_batch(source_BS.numpy(), target_BT.numpy(), made.config)


def uncorrupted(source: Sequence[int], target: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The row that (source, target) came from, and its spans, by the rules of T5's paper."""
    source, target = list(map(int, source)), list(map(int, target))
    assert source[-1] == target[-1] == EOS
    spans: list[list[int]] = []
    for token in target[:-1]:
        if FIRST_SENTINEL <= token < FIRST_SENTINEL + 64:
            assert token == FIRST_SENTINEL + len(spans), "sentinels come in order, each once"
            spans.append([])
        else:
            spans[-1].append(token)
    row: list[int] = []
    seen = 0
    for token in source[:-1]:
        if FIRST_SENTINEL <= token < FIRST_SENTINEL + 64:
            assert token == FIRST_SENTINEL + seen
            row += spans[seen]
            seen += 1
        else:
            row.append(token)
    assert seen == len(spans)
    return row, spans


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    pairs = zip(batch.source_BS.tolist(), batch.target_BT.tolist(), strict=True)
    return [tuple(uncorrupted(source, target)[0]) for source, target in pairs]


def equal(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(*both) if isinstance(both[0], torch.Tensor) else both[0] == both[1] for both in _fields(one, other)
    )


def _fields(one: Batch, other: Batch) -> Iterator[tuple[Any, Any]]:
    for a, b in zip(one, other, strict=True):
        yield from zip(a, b, strict=True) if isinstance(a, tuple) and isinstance(b, tuple) else [(a, b)]


def read_json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded
