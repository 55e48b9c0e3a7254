"""params.yaml, read and checked: types, ranges, unknown and missing keys, and what must hold between keys.

`load_params()` gives every stage its typed parameters. `python -m stages.params` only checks the file, before any work.
The classes are in `stages.params_schema` and `stages.params_data`. Costs about 0.2 s, imports included.
"""

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from lightning_modules.transformer.config import OBJECTIVES, TransformerConfig
from stages.console import run_stage, stage_parser
from stages.params_data import Entry, Parallel, ParallelTexts, Table
from stages.params_file import Location, read_params_file
from stages.params_schema import Params
from stages.tasks import PRETRAINING, PRETRAINING_FIELDS, TASKS

__all__ = ["Params", "load_params"]
Problem = tuple[Location, str]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks params.yaml. Raises PipelineError: one line with file, line number, key, and what to do."""
    file = read_params_file(path)
    try:
        params = Params.model_validate(file.values)
    except ValidationError as error:
        raise file.schema_error(error, Params) from None
    try:
        config = params.model.config(vocab_size=params.tokenizer.vocab_size)
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise file.error(("model", field), problem) from None
    for check in (_architecture_problems, _length_problems, _share_problems, _source_problems, _purpose_problems):
        for location, problem in check(params, config):
            raise file.error(location, problem)
    return params


def _architecture_problems(params: Params, config: TransformerConfig) -> Iterator[Problem]:
    """What the architecture can neither learn nor do."""
    architecture = config.architecture
    for name in params.pretrain.objective if params.pretrain.steps else ():
        if architecture not in OBJECTIVES[name]:
            fitting = [other for other, fits in OBJECTIVES.items() if architecture in fits]
            problem = f"{name} is not for model.architecture {architecture}, which learns {', '.join(fitting)}"
            yield ("pretrain", "objective"), problem
        if name == "prefix_lm" and architecture == "decoder" and not config.bidirectional_prefix:
            problem = (
                "prefix_lm reads the prefix in both directions: add bidirectional_prefix: true to the section model"
            )
            yield ("pretrain", "objective"), problem
        apart = architecture != "decoder" or name in ("causal_lm", "prefix_lm")
        if params.pretrain.packing == "best_fit" and not apart:
            problem = f"a decoder that learns {name} cannot keep documents apart: use joined"
            yield ("pretrain", "packing"), problem
    for name in params.tasks:
        if name in TASKS and architecture not in TASKS[name].architectures:
            able = "writes no text, it points at answers in its source and names classes"
            problem = (
                f"model.architecture {architecture} {able if architecture == 'encoder' else 'cannot do it'}: remove "
                f"this task, here and from data, or take another architecture{_able(params, architecture)}"
            )
            yield ("tasks", name), problem


def _able(params: Params, architecture: str) -> str:
    able = [name for name, task in TASKS.items() if architecture in task.architectures and name in params.tasks]
    return f" (it can do {', '.join(able)})" if able else ""


def _length_problems(params: Params, config: TransformerConfig) -> Iterator[Problem]:
    longest = config.max_length
    pretrain, finetune = params.pretrain, params.finetune
    if pretrain.sequence_length > longest:
        yield ("pretrain", "sequence_length"), f"{pretrain.sequence_length} exceeds model.max_length, {longest}"
    if not pretrain.steps and params.model.start_from is None:
        yield ("pretrain", "steps"), "0 is for a model that was trained before (model.start_from)"
    if 0 < pretrain.steps < pretrain.warmup_steps:
        yield ("pretrain", "warmup_steps"), f"{pretrain.warmup_steps} exceeds pretrain.steps, {pretrain.steps}"
    if finetune.choose_by == "score" and finetune.strategy in ("fsdp", "tensor_parallel"):
        yield ("finetune", "choose_by"), f"score needs a whole model on each device, not strategy {finetune.strategy}"
    for name, task in params.tasks.items():
        if finetune.warmup_steps > task.steps:
            yield ("tasks", name, "steps"), f"{task.steps} is below finetune.warmup_steps, {finetune.warmup_steps}"
        for side in ("max_source_tokens", "max_target_tokens"):
            if getattr(task, side) > longest:
                yield ("tasks", name, side), f"{getattr(task, side)} exceeds model.max_length, {longest}"
        pair = task.max_source_tokens + task.max_target_tokens
        if config.architecture == "decoder" and pair > longest:
            problem = f"with max_target_tokens a decoder's sequence has {pair} tokens, model.max_length is {longest}"
            yield ("tasks", name, "max_source_tokens"), problem
        if pair > finetune.batch_tokens:
            problem = f"{finetune.batch_tokens} cannot hold one pair of tasks.{name}, which may have {pair} tokens"
            yield ("finetune", "batch_tokens"), problem


def _share_problems(params: Params, _: TransformerConfig) -> Iterator[Problem]:
    prepare = params.prepare
    if prepare.validation_share + prepare.test_share >= 1:
        yield (
            ("prepare", "test_share"),
            "with prepare.validation_share it leaves nothing to train on: the sum is 1 or more",
        )
    if prepare.min_characters > prepare.max_characters:
        problem = f"{prepare.max_characters} is below prepare.min_characters, {prepare.min_characters}"
        yield ("prepare", "max_characters"), problem


def _source_problems(params: Params, _: TransformerConfig) -> Iterator[Problem]:
    remote, local = params.sources.remote, params.sources.local
    for name in remote.keys() & local.keys():
        yield ("sources", "local", name), "there is a source of this name in sources.remote already: rename one"
    names = [*remote, *local]
    for purpose, entries in params.data.items():
        for number, entry in enumerate(entries):
            for key in ("source", "target") if isinstance(entry, Parallel | ParallelTexts) else ("source",):
                name = getattr(entry, key)
                if name not in names:
                    yield ("data", purpose, number, key), f"no such source: {name!r}{_hint(name, names)}"


def _purpose_problems(params: Params, _: TransformerConfig) -> Iterator[Problem]:
    for name in params.tasks:
        if name not in TASKS:
            yield ("tasks", name), f"unknown task; stages/tasks.py knows {', '.join(TASKS)}{_hint(name, list(TASKS))}"
        if name not in params.data:
            yield ("tasks", name), f"there is no data for this task: add data.{name}"
    if PRETRAINING not in params.data:
        yield ("data",), f"there is no data to pre-train on: add data.{PRETRAINING}"
    for purpose, entries in params.data.items():
        if purpose != PRETRAINING and purpose not in params.tasks:
            purposes = [PRETRAINING, *params.tasks]
            problem = f"unknown purpose; it may be {', '.join(purposes)} (the keys of tasks){_hint(purpose, purposes)}"
            yield ("data", purpose), problem
        fields = PRETRAINING_FIELDS if purpose == PRETRAINING else TASKS[purpose].fields
        for number, entry in enumerate(entries):
            yield from _entry_problems(entry, ("data", purpose, number), fields)


def _entry_problems(entry: Entry, location: Location, fields: Sequence[str]) -> Iterator[Problem]:
    if not isinstance(entry, Table):
        if entry.gives != tuple(fields):
            problem = f"{entry.reader} gives {', '.join(entry.gives)}, but {location[1]} needs {', '.join(fields)}"
            yield (*location, "reader"), problem
        return
    for name in entry.columns:
        if name not in fields:
            problem = f"not a field of {location[1]}, whose fields are {', '.join(fields)}{_hint(name, fields)}"
            yield (*location, "columns", name), problem
    for name in fields:
        if name not in entry.columns:
            yield (*location, "columns"), f"the field {name} is missing: add {name}: NAME OF ITS COLUMN"


def _hint(name: str, known: Sequence[str]) -> str:
    nearest = get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def main(_: argparse.Namespace) -> None:
    """Checks params.yaml and says so."""
    load_params()
    print("params.yaml: ok")


if __name__ == "__main__":
    run_stage(main, stage_parser(__doc__))
