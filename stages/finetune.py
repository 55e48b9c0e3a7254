"""Fine-tunes for a task, from the pre-trained model or, as the control, from scratch with the same budget.

Reads data/tokens/TASK and models/pretrained; writes models/TASK, with --from-scratch models/TASK-scratch. Killed or
stopped, the same command goes on from the newest checkpoint. An encoder gets a head: one that points at answers, or one
that names classes.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from lightning_modules.decoding import Decoding
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import Model, load_model, load_tokenizer, read_config, sha256
from lightning_modules.reading import best_spans, best_threshold
from lightning_modules.text_pairs import ClassPairs, SpanPairs, TextPairs
from lightning_modules.text_to_text import BATCH_TOKENS, TextToText
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.lora import add_lora, freeze_lowest
from lightning_modules.transformer.model import Encoder, Transformer, count_parameters
from stages.console import run_stage, stage_parser
from stages.metrics import metric
from stages.params import Params, load_params
from stages.params_schema import Finetune
from stages.splits import read_split
from stages.tasks import TASKS
from stages.training import first_model, recipe, run_training
from stages.training_job import Job

TOKENIZER, PRETRAINED = Path("data/tokenizer"), Path("models/pretrained")
FROM_PRETRAINED = {"freeze_layers", "lora_rank"}  # from scratch there is nothing learnt that could be kept
SCORED = 200  # validation texts that `finetune.choose_by: score` writes at each validation, at most
JUDGED = 1000  # validation questions that the threshold of no answer is chosen by, at most


def finetune(params: Params, task: str, from_scratch: bool) -> None:
    """Trains models/TASK or models/TASK-scratch. Raises PipelineError, or Interrupted after saving a checkpoint."""
    model, train, validation = materials(params, task, from_scratch)
    section, own, seed = params.finetune, params.tasks[task], params.seed
    tokens, output = Path("data/tokens") / task, Path("models") / (f"{task}-scratch" if from_scratch else task)
    tokenizer_file = TOKENIZER / "tokenizer.json"
    _tell(task, model, train)
    unused = FROM_PRETRAINED if from_scratch else set()
    settings = {"seed": seed, "finetune": section.model_dump(exclude=unused), "task": own.model_dump()}
    if from_scratch:
        settings["model"] = asdict(model.config)
    limits: dict[str, Any] = {"max_source_tokens": own.max_source_tokens, "max_target_tokens": own.max_target_tokens}
    job = Job(
        name=f"{'scratch' if from_scratch else 'finetune'}@{task}",
        output=output,
        section=section,
        recipe=recipe(section, own.steps, own.learning_rate, section.label_smoothing, seed),
        settings=settings,
        tokens=tokens,
        inputs=[tokens, TOKENIZER] if from_scratch else [tokens, TOKENIZER, PRETRAINED],
        limits=limits | ({"keep_end": True} if train.keep_end else {}),
        tokenizer_file=tokenizer_file,
        cut=train.cut,
        same_shapes=False,
        score=scorer(task, limits) if section.choose_by == "score" else None,
        missing=train.missing if isinstance(train, SpanPairs | ClassPairs) else 0,
    )

    def sample() -> str:
        tokenizer = load_tokenizer(TOKENIZER)
        sources = [tokenizer.decode(validation.source[i].tolist()) for i in range(min(8, len(validation.source)))]
        answers = TextToText.load(output).generate(sources)
        wanted = [tokenizer.decode(validation.target[i].tolist()) for i in range(len(sources))]
        return "\n\n".join(
            f"source: {s}\nwanted: {w}\nwritten: {a}" for s, w, a in zip(sources, wanted, answers, strict=True)
        )

    def usage() -> dict[str, Any]:
        used: dict[str, Any] = {"decoding": TASKS[task].decoding} if TASKS[task].decoding else {}
        if isinstance(model, SpanReader) and isinstance(train, SpanPairs) and train.unanswerable:
            used["threshold"] = _threshold(model, cast(SpanPairs, validation))
            print(f"{task}: an answer's score must exceed that of no answer by {used['threshold']:.2f}", flush=True)
        return used

    run_training(job, model, train, validation, sample, usage)


def materials(params: Params, task: str, from_scratch: bool) -> tuple[Model, TextPairs, TextPairs]:
    """(The model to train, the pairs it is trained on, those it is validated on). Raises PipelineError."""
    if task not in params.tasks:
        raise PipelineError(f"no task {task!r} in params.yaml, which has {', '.join(params.tasks)}")
    section, own, tokens = params.finetune, params.tasks[task], Path("data/tokens") / task
    model = _first_model(params) if from_scratch else _pretrained_model(params, TOKENIZER / "tokenizer.json")
    torch.manual_seed(params.seed)  # of the new weights, the same for both
    if not from_scratch:
        assert isinstance(model, Transformer)
        _restrict(model, section)
    if isinstance(model, Encoder):
        model = Classifier(model, _labels(tokens)) if TASKS[task].kind == "class" else SpanReader(model)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise PipelineError(f"finetune.freeze_layers: of {task}'s model nothing is left to learn: lower it")
    longest = own.max_source_tokens, own.max_target_tokens

    def pairs(split: str) -> TextPairs:
        given = tokens / split, model.config, section.batch_tokens, *longest, params.seed
        if isinstance(model, SpanReader):
            return SpanPairs(*given)
        kind = ClassPairs if isinstance(model, Classifier) else TextPairs
        return kind(*given, keep_end=TASKS[task].keep == "end")

    return model, pairs("train"), pairs("validation")


def scorer(task: str, limits: dict[str, Any]) -> Callable[[Model], float]:
    """Gives a model its score by the task's leading metric on validation texts, as evaluate does on test texts.

    Greedily written, at most SCORED of them. Where some of their questions have no answer, a model that points gives
    one where that scores above the null answer: the threshold is chosen after training. Raises PipelineError where
    there are no such texts.
    """
    about, tokenizer = TASKS[task], load_tokenizer(TOKENIZER)
    records = read_split(Path("data/prepared") / task, "validation", SCORED)
    sources, references = list(map(about.source_text, records)), list(map(about.references, records))
    found, threshold = metric(about.primary), None if all(references) else 0.0

    def score(model: Model) -> float:
        greedy = Decoding(limits["max_target_tokens"])
        longest = limits["max_source_tokens"]
        answering = TextToText(model, tokenizer, longest, greedy, about.keep == "end", threshold)
        return found.score(found.statistics(answering.generate(sources), references).sum(0))

    return score


def _restrict(model: Transformer, section: Finetune) -> None:
    """Freezes what is not to learn, of a pre-trained model alone: random weights that stay would be a straw man."""
    if section.lora_rank and section.strategy == "tensor_parallel":
        raise PipelineError("finetune.lora_rank: strategy tensor_parallel cannot split its updates: use fsdp or ddp")
    for key, restrict in (("lora_rank", add_lora), ("freeze_layers", freeze_lowest)):
        try:
            if value := getattr(section, key):
                restrict(model, value)
        except ValueError as error:
            raise PipelineError(f"finetune.{key}: {error}: lower it") from None


def _labels(tokens: Path) -> list[str]:
    """The classes of the training data, sorted."""
    path = tokens / "labels.json"
    try:
        labels: list[str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}): run the tokenize stage again") from error
    if len(labels) < 2:
        raise PipelineError(f"data.{tokens.name}: all training records have the label {labels[0]!r}: add others")
    return labels


def _threshold(model: SpanReader, pairs: SpanPairs) -> float:
    """Of no answer: the one with which most validation questions are answered rightly (Devlin et al. 2019, 4.3)."""
    places = [(record, pairs.places[record].tolist()) for record in range(min(len(pairs.source), JUDGED))]
    judged = [(record, place) for record, place in places if place]
    sources = [(pairs.source[record].tolist(), place[0]) for record, place in judged]
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    spans = best_spans(model, sources, pairs.max_source, pairs.max_target, BATCH_TOKENS, lambda count: None)
    rows = [
        (span.score - span.null, [span.first, span.last] == place[1:], len(place) == 1)
        for span, (_, place) in zip(spans, judged, strict=True)
        if np.isfinite(span.score)
    ]
    if not rows:
        return 0.0
    margins, right, none = (np.array(column) for column in zip(*rows, strict=True))
    return best_threshold(margins, right, none)


def _tell(task: str, model: Model, train: TextPairs) -> None:
    learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if isinstance(train, SpanPairs):
        left_out, windows = train.missing, len(train.windows_N4)
        print(
            f"{task}: {windows} windows of {len(train.source)} sources; {train.unanswerable} have no answer", flush=True
        )
        if left_out:
            print(f"{task}: left out {left_out} pairs whose answer does not stand in the source, or is too long")
    if isinstance(train, ClassPairs):
        print(f"{task}: {len(train.source)} texts of {int(train.class_N.max()) + 1} classes", flush=True)
    if any(train.cut.values()):
        end = "beginnings" if train.keep_end else "ends"
        print(
            f"{task}: cut the {end} of {train.cut['source']} sources and the ends of {train.cut['target']} targets "
            f"that are too long, of {len(train.source)}",
            flush=True,
        )
    if learning < count_parameters(model):
        print(f"{task}: {learning:,} of {count_parameters(model):,} parameters learn", flush=True)


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
