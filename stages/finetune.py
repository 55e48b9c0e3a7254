"""Fine-tunes for a task, from the pre-trained model or, as the control, from scratch with the same budget.

Reads data/tokens/TASK and models/pretrained; writes models/TASK, with --from-scratch models/TASK-scratch. Killed or
stopped, the same command goes on from the newest checkpoint.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import Model, load_model, load_tokenizer, read_config, sha256
from lightning_modules.text_pairs import SpanPairs, TextPairs
from lightning_modules.text_to_text import TextToText
from lightning_modules.transformer.heads import SpanReader
from lightning_modules.transformer.model import Encoder
from stages.console import run_stage, stage_parser
from stages.params import Params, load_params
from stages.training import first_model, recipe, run_training
from stages.training_job import Job

TOKENIZER, PRETRAINED = Path("data/tokenizer"), Path("models/pretrained")


def finetune(params: Params, task: str, from_scratch: bool) -> None:
    """Trains models/TASK or models/TASK-scratch. Raises PipelineError, or Interrupted after saving a checkpoint."""
    model, train, validation = materials(params, task, from_scratch)
    section, own, seed = params.finetune, params.tasks[task], params.seed
    tokens, output = Path("data/tokens") / task, Path("models") / (f"{task}-scratch" if from_scratch else task)
    tokenizer_file = TOKENIZER / "tokenizer.json"
    _tell(task, train)
    settings = {"seed": seed, "finetune": section.model_dump(), "task": own.model_dump()}
    if from_scratch:
        settings["model"] = asdict(model.config)
    job = Job(
        name=f"{'scratch' if from_scratch else 'finetune'}@{task}",
        output=output,
        section=section,
        recipe=recipe(section, own.steps, own.learning_rate, section.label_smoothing, seed),
        settings=settings,
        tokens=tokens,
        inputs=[tokens, TOKENIZER] if from_scratch else [tokens, TOKENIZER, PRETRAINED],
        limits={"max_source_tokens": own.max_source_tokens, "max_target_tokens": own.max_target_tokens},
        tokenizer_file=tokenizer_file,
        cut=train.cut,
        same_shapes=False,
    )

    def sample() -> str:
        tokenizer = load_tokenizer(TOKENIZER)
        sources = [tokenizer.decode(validation.source[i].tolist()) for i in range(min(8, len(validation.source)))]
        answers = TextToText.load(output).generate(sources)
        wanted = [tokenizer.decode(validation.target[i].tolist()) for i in range(len(sources))]
        return "\n\n".join(
            f"source: {s}\nwanted: {w}\nwritten: {a}" for s, w, a in zip(sources, wanted, answers, strict=True)
        )

    run_training(job, model, train, validation, sample)


def materials(params: Params, task: str, from_scratch: bool) -> tuple[Model, TextPairs, TextPairs]:
    """(The model to train, the pairs it is trained on, those it is validated on). Raises PipelineError."""
    if task not in params.tasks:
        raise PipelineError(f"no task {task!r} in params.yaml, which has {', '.join(params.tasks)}")
    section, own, tokens = params.finetune, params.tasks[task], Path("data/tokens") / task
    model = _first_model(params) if from_scratch else _pretrained_model(params, TOKENIZER / "tokenizer.json")
    if isinstance(model, Encoder):
        torch.manual_seed(params.seed)  # of the new weights, the same for both
        model = SpanReader(model)
    pairs = SpanPairs if isinstance(model, SpanReader) else TextPairs
    longest = own.max_source_tokens, own.max_target_tokens
    train, validation = (
        pairs(tokens / split, model.config, section.batch_tokens, *longest, params.seed)
        for split in ("train", "validation")
    )
    return model, train, validation


def _tell(task: str, train: TextPairs) -> None:
    if any(train.cut.values()):
        print(
            f"{task}: cut {train.cut['source']} sources and {train.cut['target']} targets that are too long", flush=True
        )
    if isinstance(train, SpanPairs) and train.missing:
        print(
            f"{task}: left out {train.missing} pairs whose answer does not stand in the source, or was cut", flush=True
        )


def _first_model(params: Params) -> Model:
    tokenizer = load_tokenizer(TOKENIZER)
    config = params.model.config(vocab_size=tokenizer.get_vocab_size(), dropout=params.finetune.dropout)
    return first_model(params, tokenizer, config)


def _pretrained_model(params: Params, tokenizer_file: Path) -> Model:
    if read_config(PRETRAINED)["tokenizer_sha256"] != sha256(tokenizer_file):
        raise PipelineError(f"{PRETRAINED} was trained with another tokenizer than {tokenizer_file}: rerun pretrain")
    return load_model(PRETRAINED, dropout=params.finetune.dropout)


def main(arguments: argparse.Namespace) -> None:
    """Runs the stage."""
    finetune(load_params(), arguments.task, arguments.from_scratch)


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("task", help="a task of params.yaml")
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights: the control")
    run_stage(main, parser)
