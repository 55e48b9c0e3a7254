"""Learn the subwords from the training split: data/prepared/pretraining/train.parquet → data/tokenizer/tokenizer.json.

Byte-level byte-pair encoding: every text can be written with it, none needs an unknown token. Ids: 0 <pad>, 1 <s>,
2 </s>, 3 <unk>, 4 <mask>, 5–68 the sentinels <extra_id_0> … <extra_id_63>, then 256 bytes and the learned subwords.
Reads about 4 million characters a second of processor time, and holds the distinct words with their counts.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.outputs import whole_directory
from stages.params import load_params

SENTINELS = 64
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>", *(f"<extra_id_{n}>" for n in range(SENTINELS)))
_MIN_FREQUENCY = 2  # a pair seen once is no pattern
_SAMPLE = 2000  # validation texts from which compression is measured


def train_tokenizer(texts: Path, vocab_size: int) -> Tokenizer:
    """Trains on column `text` of a parquet file. The same file and size give the same tokenizer, byte for byte.

    Raises PipelineError where the file cannot be read or has no text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    try:
        rows = pq.read_metadata(texts).num_rows
        if not rows:
            raise PipelineError(f"{texts} has no text to learn from: run the prepare stage again")
        tokenizer.train_from_iterator(_batches(texts, rows), trainer)
    except OSError as error:
        raise PipelineError(f"{texts} cannot be read ({error}): run the prepare stage first") from None
    return tokenizer


def _batches(texts: Path, rows: int) -> Iterator[list[str]]:
    with pq.ParquetFile(texts) as file, progress(total=rows, name="tokenizer: read", unit="text") as bar:
        for batch in file.iter_batches(columns=["text"]):
            yield batch["text"].to_pylist()
            bar.update(batch.num_rows)


def characters_per_token(tokenizer: Tokenizer, texts: Path) -> float:
    """Compression on the first texts of a parquet file: Unicode characters for each token."""
    with pq.ParquetFile(texts) as file:
        sample: list[str] = next(
            (batch["text"].to_pylist() for batch in file.iter_batches(_SAMPLE, columns=["text"])), []
        )
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(sample, add_special_tokens=False))
    return sum(map(len, sample)) / max(1, tokens)


def main(_: argparse.Namespace) -> None:
    """Trains the tokenizer, saves it and says how well it compresses."""
    from stages.tracking import stage_run

    wanted = load_params().tokenizer
    folder = Path("data/prepared/pretraining")
    with stage_run("tokenizer", params=wanted.model_dump(), inputs=[folder / "train.parquet"]) as run:
        started = time.monotonic()
        tokenizer = train_tokenizer(folder / "train.parquet", wanted.vocab_size)
        seconds, entries = time.monotonic() - started, tokenizer.get_vocab_size()
        with whole_directory(Path("data/tokenizer")) as output:
            tokenizer.save(str(output / "tokenizer.json"))
        compression = characters_per_token(tokenizer, folder / "validation.parquet")
        run.log_metrics({"entries": entries, "characters_per_token": compression, "seconds": seconds})
        print(f"tokenizer: {entries} entries, {compression:.2f} characters per token of the validation split")
        if entries < wanted.vocab_size:
            print(
                f"warning: tokenizer.vocab_size is {wanted.vocab_size}, but the text holds patterns for {entries} only",
                file=sys.stderr,
            )


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
