"""What params.yaml may hold: one class a section, one attribute a key, each with the values it allows.

What a key means stands once, in its comment in params.yaml. A new key is one attribute here and one line there.
`stages.params` reads the file into these classes. Import costs about 0.1 s.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from stages.params_data import Entry, Section, Sources, Text


def _auto_or_count(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and value >= 1):
        return value  # type: ignore[no-any-return]
    raise ValueError("must be auto or a whole number, at least 1")


Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
AutoOrCount = Annotated[int | Literal["auto"], PlainValidator(_auto_or_count)]


class Prepare(Section):
    """Filters and the split."""

    min_characters: Count
    max_characters: Count
    min_letter_share: Share
    validation_share: Annotated[float, Field(gt=0, le=0.5)]
    test_share: Annotated[float, Field(gt=0, le=0.5)]


class Tokenizer(Section):
    """The subword vocabulary."""

    kind: Literal["bpe"]
    vocab_size: Annotated[int, Field(ge=512, lt=2**31)]


class Model(Section):
    """The network's shape."""

    architecture: Literal["encoder_decoder"]
    d_model: Annotated[int, Field(ge=2, multiple_of=2)]
    heads: Count
    d_ff: Count
    encoder_layers: Count
    decoder_layers: Count
    dropout: Dropout
    norm: Literal["pre", "post"]
    max_length: Count


class Training(Section):
    """What pre-training and fine-tuning share: the optimiser, checkpoints, the devices."""

    schedule: Literal["inverse_sqrt", "linear"]
    warmup_steps: CountOrZero
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: Positive
    validate_every: Count
    checkpoint_every: Count
    early_stopping_patience: CountOrZero
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: AutoOrCount
    num_nodes: Count
    strategy: Literal["auto", "ddp"]
    precision: Literal["auto", "32-true", "bf16-mixed"]
    threads: AutoOrCount


class Pretrain(Training):
    """Learning from unlabelled text."""

    objective: Literal["span_corruption"]
    corruption_rate: Annotated[float, Field(gt=0, lt=1)]
    mean_span_length: Annotated[float, Field(ge=1)]
    sequence_length: Annotated[int, Field(ge=8)]
    batch_size: Count
    steps: Count
    learning_rate: Positive
    validation_batches: Count


class Finetune(Training):
    """Learning a task, whichever."""

    batch_tokens: Count
    dropout: Dropout
    label_smoothing: Dropout


class TaskParams(Section):
    """Learning one task."""

    steps: Count
    learning_rate: Positive
    max_source_tokens: Count
    max_target_tokens: Count


class Evaluate(Section):
    """Scoring."""

    max_records: CountOrZero
    bootstrap_samples: Annotated[int, Field(ge=100)]
    threads: Count


class Tracking(Section):
    """Names in MLflow."""

    experiment: Text
    registered_model: Annotated[str, Field(pattern=r"^[^/:]+$")]  # MLflow allows neither in a model's name


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    sources: Sources
    data: dict[str, Annotated[list[Entry], Field(min_length=1)]]
    prepare: Prepare
    tokenizer: Tokenizer
    model: Model
    pretrain: Pretrain
    finetune: Finetune
    tasks: dict[str, TaskParams]
    evaluate: Evaluate
    tracking: Tracking
