"""Sentences a second beside Hugging Face's `generate` and CTranslate2: `python -m benchmarks.decoding`.

The same weights for all. Some ten minutes. Every contestant writes in a process of its own, and they take turns; ratios
are of runs of the same round, the table gives their medians. Sources are drawn (ids by Zipf's law, 23 tokens on
average), sorted by length and cut into batches; the models are random and never choose </s>, so that all write as many
tokens as the longest source of a batch has: equal work, and nothing gained here by texts that end early. With a model
folder and a file of texts, one a line, real texts are answered instead, and end where they end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_modules.allocator import keep_memory
from lightning_modules.batching import pad, source_tensors
from lightning_modules.decoding import Decoding, decode
from lightning_modules.model_folder import load_model, load_tokenizer, new_model, read_config
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.embeddings import TokenEmbedding
from lightning_modules.transformer.model import Decoder, EncoderDecoder, lay_out_for_steps
from lightning_modules.transformer.presets import preset

ROUNDS, THREADS, SENTENCES, BATCH = 3, 2, 256, 64
SIZES: dict[str, dict[str, Any]] = {  # all of the 2017 paper's kind
    "8M": {"vocab_size": 8192, "d_model": 256, "heads": 4, "d_ff": 1024, "encoder_layers": 3, "decoder_layers": 3},
    "60M": {"vocab_size": 32_000},
}
Ids = list[list[int]]


@dataclass(frozen=True)
class Job:
    """A model, its batches of sources (each with </s>), and how many tokens each batch may write."""

    model: Decoder | EncoderDecoder
    batches: list[tuple[Ids, int]]


def drawn(size: str, sentences: int, batch: int) -> Job:
    """A random model of a size, and drawn sources."""
    config: TransformerConfig = preset("vaswani-base", **SIZES[size])
    model = new_model(config, 0).eval()
    assert isinstance(model, EncoderDecoder)
    assert isinstance(model.embedding, TokenEmbedding)
    torch.nn.init.zeros_(model.embedding.weight_VD[config.eos_id])  # a score of 0 never wins
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, config.vocab_size - 4) ** 1.1
    lengths = rng.lognormal(3.0, 0.5, sentences).astype(int).clip(4, 100)
    rows = [[*(5 + rng.choice(len(weights), n, p=weights / weights.sum())).tolist(), config.eos_id] for n in lengths]
    return Job(model, [(part, len(part[0])) for part in sorted_batches(rows, batch)])


def given(folder: Path, texts: Path, sentences: int, batch: int) -> Job:
    """A fine-tuned model, and the first lines of a file."""
    model, limits = load_model(folder).eval(), read_config(folder)["limits"]
    assert isinstance(model, Decoder | EncoderDecoder)
    lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()][:sentences]
    encodings = load_tokenizer(folder).encode_batch_fast(lines, add_special_tokens=False)
    most, eos = limits["max_source_tokens"] - 1, model.config.eos_id
    rows = [[*encoding.ids[:most], eos] for encoding in encodings]
    return Job(model, [(part, limits["max_target_tokens"]) for part in sorted_batches(rows, batch)])


def sorted_batches(rows: Ids, size: int) -> list[Ids]:
    """The longest first."""
    rows = sorted(rows, key=len, reverse=True)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def ours(job: Job, beams: int, threads: int) -> Callable[[Ids, int], Ids]:
    """This project's own search."""
    lay_out_for_steps(job.model)

    def write(rows: Ids, most: int) -> Ids:
        sources = source_tensors(pad(rows, job.model.config.pad_id), 0, isinstance(job.model, Decoder))
        return [texts[0].ids for texts in decode(job.model, *sources, Decoding(most, beams))]

    return write


def hugging_face(job: Job, beams: int, threads: int) -> Callable[[Ids, int], Ids]:
    """`generate` of the family that computes the same; attention is torch's fused kernel there, too."""
    from lightning_modules.interop.huggingface import to_hugging_face

    config, prompts = job.model.config, isinstance(job.model, Decoder)
    theirs = to_hugging_face(job.model)
    theirs.set_attn_implementation("sdpa")

    def write(rows: Ids, most: int) -> Ids:
        begun = [[*row, config.bos_id] for row in rows] if prompts else rows
        source_BS, real_BS = source_tensors(pad(begun, config.pad_id), config.pad_id, prompts)
        mask_BS = torch.ones_like(source_BS) if real_BS is None else real_BS.long()
        ids = {"pad_token_id": config.pad_id, "eos_token_id": config.eos_id}
        options = {"max_new_tokens": most, "num_beams": beams, "do_sample": False}
        written = theirs.generate(source_BS, attention_mask=mask_BS, **options, **ids).tolist()
        texts = [row[source_BS.shape[1] if prompts else 1 :] for row in written]
        return [[*text, config.eos_id][: [*text, config.eos_id].index(config.eos_id)] for text in texts]

    return write


def ctranslate2(job: Job, beams: int, threads: int, quantization: str) -> Callable[[Ids, int], Ids]:
    """The export of `lightning_modules.interop.ctranslate2`, with names for ids that need no tokenizer."""
    import ctranslate2 as library

    from lightning_modules.interop.ctranslate2_spec import make_spec

    config, prompts = job.model.config, isinstance(job.model, Decoder)
    names = [f"t{number}" for number in range(config.vocab_size)]
    spec = make_spec(job.model)
    if prompts:
        spec.register_vocabulary(names)
    else:
        spec.register_source_vocabulary(names)
        spec.register_target_vocabulary(names)
        spec.config.decoder_start_token = names[config.bos_id]
        spec.config.add_source_bos = spec.config.add_source_eos = False
    spec.config.bos_token, spec.config.eos_token = names[config.bos_id], names[config.eos_id]
    spec.config.unk_token = names[config.pad_id]
    spec.validate()
    spec.optimize(None if quantization == "float32" else quantization)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        opened = library.Generator if prompts else library.Translator
        # Faster than all threads on one batch: a thread for each part of it.
        network = opened(folder, device="cpu", inter_threads=threads, intra_threads=1)

    def write(rows: Ids, most: int) -> Ids:
        share = -(-len(rows) // threads)
        options: dict[str, Any] = {"beam_size": beams, "return_end_token": True, "max_batch_size": share}
        if prompts:
            begun = [[names[token] for token in (*row, config.bos_id)] for row in rows]
            results = network.generate_batch(begun, max_length=most, include_prompt_in_result=False, **options)
            written = [result.sequences_ids[0] for result in results]
        else:
            tokens = [[names[token] for token in row] for row in rows]
            results = network.translate_batch(tokens, max_decoding_length=most, min_decoding_length=0, **options)
            written = [[int(token[1:]) for token in result.hypotheses[0]] for result in results]
        return [ids[:-1] if ids and ids[-1] == config.eos_id else ids for ids in written]

    return write


CONTESTANTS: dict[str, Callable[[Job, int, int], Callable[[Ids, int], Ids]]] = {
    "Hugging Face": hugging_face,
    "ours": ours,
    "CTranslate2 float32": partial(ctranslate2, quantization="float32"),
    "CTranslate2 int8": partial(ctranslate2, quantization="int8"),
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One contestant in this process: seconds for all batches, after the smallest once, and what it wrote."""
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        keep_memory()
    if arguments.given:
        folder, texts = map(Path, arguments.given)
        job = given(folder, texts, arguments.sentences, arguments.batch)
    else:
        job = drawn(arguments.size, arguments.sentences, arguments.batch)
    write = CONTESTANTS[arguments.one](job, arguments.one_beams, arguments.threads)
    write(*job.batches[-1])
    began = time.perf_counter()
    written = [text for rows, most in job.batches for text in write(rows, most)]
    return {"seconds": time.perf_counter() - began, "written": written}


def run(name: str, size: str, beams: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.decoding", *map(str, arguments.given)]
    command += ["--one", name, "--size", size, "--one-beams", str(beams), "--threads", str(arguments.threads)]
    command += ["--sentences", str(arguments.sentences), "--batch", str(arguments.batch)]
    command += ["--keep-memory"] * arguments.keep_memory
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints a table for each size and number of beams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="MODEL_FOLDER TEXTS", help="a fine-tuned model and a file")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--batch", type=int, default=BATCH, help="sentences of a batch")
    parser.add_argument("--keep-memory", action="store_true", help="tell the C allocator to keep memory, for all")
    parser.add_argument("--only", nargs="+", default=[], help="words in the names of contestants")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--one-beams", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if len(arguments.given) not in (0, 2):
        parser.error("give a model folder and a file of texts, or neither")
    if arguments.one:
        print(json.dumps(measure(arguments)))
        return
    names = [n for n in CONTESTANTS if not arguments.only or any(word.lower() in n.lower() for word in arguments.only)]
    for size in ["given"] if arguments.given else arguments.sizes:
        for beams in arguments.beams:
            rounds = [{n: run(n, size, beams, arguments) for n in names} for _ in range(arguments.rounds)]
            print(f"{size}, {beams} beams, {len(rounds[0][names[0]]['written'])} sentences")
            for name in names:
                print(_line(name, names[0], rounds), flush=True)


def _line(name: str, first: str, rounds: list[dict[str, dict[str, Any]]]) -> str:
    """Median sentences/s, median of how many times the first one's, and the share of texts that are its."""
    texts, theirs = rounds[0][name]["written"], rounds[0][first]["written"]
    rate = statistics.median(len(texts) / round_[name]["seconds"] for round_ in rounds)
    ratio = statistics.median(round_[first]["seconds"] / round_[name]["seconds"] for round_ in rounds)
    same = sum(one == other for one, other in zip(texts, theirs, strict=True)) / len(texts)
    return f"  {name:22}{rate:9.1f} sentences/s{ratio:8.2f} ×{same:9.1%} the same texts as {first}"


if __name__ == "__main__":
    main()
