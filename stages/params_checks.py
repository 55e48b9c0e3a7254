"""What must hold between the keys of params.yaml, and is known from them alone: checked whenever the file is read."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from lightning_modules.errors import PipelineError
from lightning_modules.transformer.config import OBJECTIVES, TransformerConfig
from stages.params_data import Entry, Parallel, ParallelTexts, Table
from stages.params_errors import Location
from stages.params_schema import Params
from stages.tasks import PRETRAINING, PRETRAINING_FIELDS, TASKS

Problem = tuple[Location, str]
WRITTEN = ("data/raw", "data/prepared", "data/tokenizer", "data/tokens", "models", "reports")  # outputs are in these
_SHARDED = ("fsdp", "tensor_parallel")
_FEW_SPANS = 32  # in a row: for fewer there are sentinels in any case, and numpy need not be loaded to count them


def problems(params: Params, config: TransformerConfig, root: Path) -> Iterator[Problem]:
    """What cannot work, each with where it stands. `root` is the folder that paths in params.yaml start from."""
    yield from _architecture_problems(params, config)
    yield from _length_problems(params, config)
    yield from _strategy_problems(params)
    yield from _restraint_problems(params, config)
    yield from _span_problems(params)
    yield from _share_problems(params)
    yield from _source_problems(params)
    yield from _path_problems(params, root)
    yield from _purpose_problems(params)


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


def _strategy_problems(params: Params) -> Iterator[Problem]:
    """What cannot be done with a share of the model on each device; lightning_modules/parallel.py says it late."""
    finetune = params.finetune
    sections = {"pretrain": params.pretrain} if params.pretrain.steps else {}
    for name, section in (sections | ({"finetune": finetune} if params.tasks else {})).items():
        if section.strategy in _SHARDED and section.optimizer != "adamw":
            problem = (
                f"{section.optimizer} needs whole matrices, of which strategy {section.strategy} keeps a share on each "
                "device: use adamw, or strategy ddp"
            )
            yield (name, "optimizer"), problem
    if finetune.choose_by == "score" and finetune.strategy in _SHARDED:
        yield ("finetune", "choose_by"), f"score needs a whole model on each device, not strategy {finetune.strategy}"


def _restraint_problems(params: Params, config: TransformerConfig) -> Iterator[Problem]:
    """What of a model cannot be kept from learning; stages/finetune.py says it late."""
    finetune = params.finetune
    if not params.tasks:
        return
    if finetune.lora_rank >= config.d_model:
        yield ("finetune", "lora_rank"), f"{finetune.lora_rank} is not below the model's width, {config.d_model}"
    if finetune.lora_rank and finetune.strategy == "tensor_parallel":
        problem = "strategy tensor_parallel cannot split its updates: use fsdp or ddp, or lora_rank: 0"
        yield ("finetune", "lora_rank"), problem
    stacks = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    fewest = min(layers for name, layers in stacks.items() if name in config.architecture)
    if finetune.freeze_layers > fewest:
        yield ("finetune", "freeze_layers"), f"{finetune.freeze_layers} exceeds the layers of a stack, {fewest}"


def _span_problems(params: Params) -> Iterator[Problem]:
    """Whether the tokenizer has a sentinel for each span of a row. One that comes with a model has its own number."""
    section = params.pretrain
    spans = section.sequence_length * section.corruption_rate / section.mean_span_length  # about so many
    learns = section.steps and "span_corruption" in section.objective and params.model.start_from is None
    if not learns or spans < _FEW_SPANS:
        return
    from lightning_modules.objectives import SpanCorruption
    from stages.tokenizer_kinds import SENTINELS

    objective = SpanCorruption(section.corruption_rate, section.mean_span_length, 0, SENTINELS, 0)
    try:
        objective.spans_and_noise(section.sequence_length)
    except PipelineError as error:
        yield ("pretrain", "sequence_length"), str(error).removeprefix("pretrain.sequence_length ")


def _share_problems(params: Params) -> Iterator[Problem]:
    prepare = params.prepare
    if prepare.validation_share + prepare.test_share >= 1:
        yield (
            ("prepare", "test_share"),
            "with prepare.validation_share it leaves nothing to train on: the sum is 1 or more",
        )
    if prepare.min_characters > prepare.max_characters:
        problem = f"{prepare.max_characters} is below prepare.min_characters, {prepare.min_characters}"
        yield ("prepare", "max_characters"), problem


def _source_problems(params: Params) -> Iterator[Problem]:
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


def _path_problems(params: Params, root: Path) -> Iterator[Problem]:
    """Sources among what the pipeline itself writes, of which DVC would say that a stage depends on its own output."""
    for name, source in params.sources.local.items():
        place = (root / source.path).resolve()
        for written in WRITTEN:
            folder = (root / written).resolve()
            if not (place.is_relative_to(folder) or folder.is_relative_to(place)):
                continue
            lies = "lies in" if place.is_relative_to(folder) else "holds"
            what = '"" or .' if source.path == Path() else str(source.path)
            problem = f"{what} {lies} {written}, which the pipeline writes: name a file or folder elsewhere"
            yield ("sources", "local", name, "path"), problem


def _purpose_problems(params: Params) -> Iterator[Problem]:
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
