"""Learn the vocabulary of the training split: data/prepared/pretraining/train.parquet → data/tokenizer/tokenizer.json.

`tokenizer.kind` says what a token is: see stages/tokenizer_kinds.py. Ids: 0 <pad>, 1 <s>, 2 </s>, 3 <unk>, 4 <mask>,
5–68 the sentinels <extra_id_0> … <extra_id_63>, then what was learned (byte_bpe: the 256 bytes first).
byte_bpe reads about 4 million characters a second of processor time, and holds the distinct words with their counts.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from lightning_modules.errors import PipelineError
from stages.console import progress, run_stage, stage_parser
from stages.outputs import whole_directory
from stages.params import load_params
from stages.start import checked_folder
from stages.tokenizer_kinds import KINDS, SPECIAL_TOKENS, learn

OUTPUT = Path("data/tokenizer")
_SAMPLE = 2000  # validation texts on which the tokenizer is measured


class Fit(NamedTuple):
    """How well a tokenizer suits some texts."""

    characters_per_token: float  # Unicode characters
    unknown_share: float  # of the tokens


def train_tokenizer(texts: Path, vocab_size: int, kind: str = "byte_bpe") -> Tokenizer:
    """Trains on column `text` of a parquet file. The same file, size and kind give the same tokenizer, byte for byte.

    `kind` is a key of KINDS. Raises PipelineError where the file cannot be read or has no text.
    """
    with _readable(texts):
        rows = pq.read_metadata(texts).num_rows
        if not rows:
            raise PipelineError(f"{texts} has no text to learn from: run the prepare stage again")
        return learn(kind, lambda: _batches(texts, rows), vocab_size)


@contextmanager
def _readable(texts: Path) -> Iterator[None]:
    """Makes one line of what is wrong with a parquet file that is missing or damaged."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(f"{texts} cannot be read ({error}): run the prepare stage first") from None


def _batches(texts: Path, rows: int) -> Iterator[list[str]]:
    with pq.ParquetFile(texts) as file, progress(total=rows, name="tokenizer: read", unit="text") as bar:
        for batch in file.iter_batches(columns=["text"]):
            yield batch["text"].to_pylist()
            bar.update(batch.num_rows)


def measure(tokenizer: Tokenizer, texts: Path) -> Fit:
    """Compression and unknown tokens on the first texts of a parquet file; special tokens' names in them are text.

    Raises PipelineError where the file cannot be read.
    """
    with _readable(texts), pq.ParquetFile(texts) as file:
        sample: list[str] = next(
            (batch["text"].to_pylist() for batch in file.iter_batches(_SAMPLE, columns=["text"])), []
        )
    tokenizer.encode_special_tokens = True
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(sample, add_special_tokens=False)]
    tokens, unknown = max(1, sum(map(len, ids))), SPECIAL_TOKENS.index("<unk>")
    return Fit(sum(map(len, sample)) / tokens, sum(document.count(unknown) for document in ids) / tokens)


def _take_over(model: Path) -> None:
    """A model goes on with the tokenizer that it was trained with."""
    with whole_directory(OUTPUT) as output:
        shutil.copyfile(model / "tokenizer.json", output / "tokenizer.json")
    print(f"tokenizer: that of {model}, which training starts from; the section tokenizer is not read")


def main(_: argparse.Namespace) -> None:
    """Trains the tokenizer, saves it and says how well it fits the validation split."""
    from stages.tracking import stage_run

    params = load_params()
    if params.model.start_from is not None:
        _take_over(checked_folder(params.model.start_from))
        return
    wanted = params.tokenizer
    folder = Path("data/prepared/pretraining")
    with stage_run("tokenizer", params=wanted.model_dump(), inputs=[folder / "train.parquet"]) as run:
        started = time.monotonic()
        tokenizer = train_tokenizer(folder / "train.parquet", wanted.vocab_size, wanted.kind)
        seconds, entries = time.monotonic() - started, tokenizer.get_vocab_size()
        with whole_directory(OUTPUT) as output:
            tokenizer.save(str(output / "tokenizer.json"))
        fit = measure(tokenizer, folder / "validation.parquet")
        run.log_metrics({"entries": entries, "seconds": seconds, **fit._asdict()})
        unknown = f", {fit.unknown_share:.2%} of them unknown" if fit.unknown_share else ""
        print(
            f"tokenizer: {entries} entries, {fit.characters_per_token:.2f} characters per token of the validation split"
            f"{unknown}"
        )
        if entries < wanted.vocab_size:
            print(
                f"warning: tokenizer.vocab_size is {wanted.vocab_size}, but the text holds "
                f"{KINDS[wanted.kind].entries} for {entries} entries only",
                file=sys.stderr,
            )


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
