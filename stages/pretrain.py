"""Pre-trains the Transformer on unlabelled text. Takes nearly all of the pipeline's time.

Reads data/tokens/pretraining and data/tokenizer; writes models/pretrained. Killed or stopped, the same command goes on
from the newest checkpoint.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from lightning_modules.advice import repetition
from lightning_modules.batching import Batch
from lightning_modules.decoding import greedy
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import Model, load_model, load_tokenizer, save_model
from lightning_modules.named_objectives import make_objective
from lightning_modules.objectives import Denoising, Mixture, Objective
from lightning_modules.text_rows import TextRows
from lightning_modules.token_store import TokenStore
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, count_parameters
from stages.console import run_stage, stage_parser
from stages.outputs import whole_directory
from stages.params import Params, load_params
from stages.params_schema import StartFrom
from stages.start import checked_folder
from stages.training import first_model, recipe, run_training, write_curve
from stages.training_job import Job

TOKENS, TOKENIZER, OUTPUT = Path("data/tokens/pretraining"), Path("data/tokenizer"), Path("models/pretrained")
SAMPLES = 4
SAME_SHAPES = {"causal_lm", "masked_lm", "span_corruption"}  # objectives that make of rows batches of one shape


def pretrain(params: Params) -> None:
    """Trains `models/pretrained` as `params` say. Raises PipelineError, or Interrupted after saving a checkpoint."""
    section, seed, start = params.pretrain, params.seed, params.model.start_from
    if start is not None and not section.steps:
        _take_over(start)
        return
    model, train, validation = materials(params)
    if warning := repetition("pretrain", section.steps, train.batches_per_epoch):
        print(warning, flush=True)
    job = Job(
        name="pretrain",
        output=OUTPUT,
        section=section,
        recipe=recipe(section, section.steps, section.learning_rate, label_smoothing=0.0, seed=seed),
        settings={
            "seed": seed,
            "model": asdict(train.config),
            "start_from": start and start.sha256,
            "pretrain": section.model_dump(),
        },
        tokens=TOKENS,
        inputs=[TOKENS, TOKENIZER],
        limits={},
        tokenizer_file=TOKENIZER / "tokenizer.json",
        cut={},
        same_shapes=set(section.objective) <= SAME_SHAPES and len(section.objective) == 1,
    )

    def sample() -> str:
        tokenizer = load_tokenizer(TOKENIZER)
        batch = next(iter(validation.validation_batches(0, 1)))
        read, hidden, guessed = guesses(model.cpu(), batch)
        lines = []
        for row in zip(read, hidden, guessed, strict=True):
            for name, ids in zip(("read", "hidden", "guessed"), row, strict=True):
                lines.append(f"{name}: {tokenizer.decode(ids, skip_special_tokens=False)}")
            lines.append("")
        return "\n".join(lines)

    run_training(job, model, train, validation, sample)


def materials(params: Params) -> tuple[Model, TextRows, TextRows]:
    """(The model to train, the text it is trained on, the text it is validated on). Raises PipelineError."""
    section, start = params.pretrain, params.model.start_from
    tokenizer = load_tokenizer(TOKENIZER)
    config = params.model.config(vocab_size=tokenizer.get_vocab_size())
    model = first_model(params, tokenizer, config) if start is None else _started_model(start, config.dropout)
    objective = make_objective(
        section.objective,
        corruption_rate=section.corruption_rate,
        mean_span_length=section.mean_span_length,
        whole_words=section.whole_words,
        tokenizer=tokenizer,
    )
    train, validation = (
        TextRows(
            TokenStore(TOKENS / split),
            config,
            objective,
            section.sequence_length,
            section.batch_size,
            section.validation_batches,
            params.seed,
            section.packing,
        )
        for split in ("train", "validation")
    )
    _check_length(config, objective, section.sequence_length)
    return model, train, validation


def _started_model(start: StartFrom, dropout: float) -> Encoder | Decoder | EncoderDecoder:
    model = load_model(checked_folder(start), dropout)
    if isinstance(model, SpanReader | Classifier):
        raise PipelineError(f"model.start_from: {start.path} was fine-tuned, and writes nothing: start from another")
    return model


def _take_over(start: StartFrom) -> None:
    """Passes a model on as it is: no text is learnt from before the tasks."""
    from stages.tracking import stage_run

    with stage_run("pretrain", params={"start_from": start.sha256}, inputs=[start.path]) as run:
        model = _started_model(start, dropout=0.0)
        with whole_directory(OUTPUT) as folder:
            save_model(folder, model, TOKENIZER / "tokenizer.json", limits={})
            training = {"steps": 0, "parameters": count_parameters(model), "mlflow_run_id": run.run_id}
            (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
            write_curve(folder / "curve.csv", [])
    print(f"pretrain: {start.path} as it is (pretrain.steps is 0)")


def guesses(model: Model, batch: Batch) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """What the model read, what was hidden from it, and what it guesses, for the first rows of a batch."""
    source_BS, target_BT = batch.source_BS[:SAMPLES], batch.target_BT[:SAMPLES]
    real_BS = None if batch.real_BS is None else batch.real_BS[:SAMPLES]
    if isinstance(model, Encoder):
        with torch.inference_mode():
            best_BT = model.logits(model(source_BS, real_BS)).argmax(-1)
        hidden_BT = target_BT != model.config.pad_id
        return source_BS.tolist(), _only(target_BT, hidden_BT), _only(best_BT, hidden_BT)
    assert isinstance(model, Decoder | EncoderDecoder)
    if source_BS.shape[1]:
        guessed = greedy(model, source_BS, real_BS, target_BT.shape[1])
        return source_BS.tolist(), target_BT.tolist(), guessed
    half = target_BT.shape[1] // 2  # nothing but a text: the model goes on from its first half
    begun_BT = torch.cat([torch.full_like(target_BT[:, :1], model.config.bos_id), target_BT[:, :half]], dim=1)
    guessed = greedy(model, begun_BT[:, :-1], None, target_BT.shape[1] - half, begun_BT[:, -1:])
    return begun_BT.tolist(), target_BT[:, half:].tolist(), guessed


def _only(ids_BT: torch.Tensor, wanted_BT: torch.Tensor) -> list[list[int]]:
    return [ids[wanted].tolist() for ids, wanted in zip(ids_BT, wanted_BT, strict=True)]


def _check_length(config: TransformerConfig, objective: Objective, length: int) -> None:
    """Raises PipelineError where learned positions end before sequences made of `length` tokens do."""
    longest = _longest(objective, length, joined=config.architecture == "decoder")
    if config.positions == "learned" and longest > config.max_length:
        raise PipelineError(
            f"pretrain.sequence_length {length} makes sequences of up to {longest} tokens with pretrain.objective, "
            f"learned positions end at model.max_length {config.max_length}: shorten the one or lengthen the other"
        )


def _longest(objective: Objective, length: int, joined: bool) -> int:
    """Tokens on the longer side, or, `joined`, on both."""
    if isinstance(objective, Mixture):
        return max(_longest(part, length, joined) for part, _ in objective.parts)
    if isinstance(objective, Denoising):  # how long its source is falls to chance
        sides = length + 1, length + 1
    else:
        source, target = objective(np.ones((1, length), np.int64), np.random.default_rng(0))
        sides = source.shape[1], target.shape[1]
    return sum(sides) if joined else max(sides)


def main(arguments: argparse.Namespace) -> None:
    """Runs the stage."""
    pretrain(load_params())


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
