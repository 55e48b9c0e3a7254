"""What params.yaml may hold: one class a section, one attribute a key, each with the values it allows.

What a key means stands once, in its comment in params.yaml. A new key is one attribute here and one line there.
`stages.params` reads the file into these classes. Import costs about 0.1 s.
"""

import json
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, create_model

from lightning_modules.transformer.config import OBJECTIVES, TransformerConfig
from lightning_modules.transformer.presets import PRESETS, preset
from stages.params_data import Entry, Language, Section, SourceName, Sources, Text
from stages.tasks import TASKS


def word_or_count(word: str) -> PlainValidator:
    """A key whose value is `word` or a whole number, at least 1."""

    def checked(value: Any) -> int | str:
        if value == word or (type(value) is int and value >= 1):
            return value  # type: ignore[no-any-return]
        raise ValueError(f"must be {word} or a whole number, at least 1")

    return PlainValidator(checked)


def _objective(value: Any) -> dict[str, float]:
    """An objective's name, or a mixture {name: weight} → weights by name."""
    weights = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(weights, dict) or not weights:
        raise ValueError("must be the name of an objective, or a mixture {name: weight, …}")
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise ValueError(f"{name!r} is no objective; known are {', '.join(OBJECTIVES)}")
        if type(weight) not in (int, float) or not 0 < weight < float("inf"):
            raise ValueError(f"the weight of {name} must be a number above 0")
    return {name: float(weight) for name, weight in weights.items()}


def _preset(value: str) -> str:
    if value not in PRESETS:
        nearest = get_close_matches(value, PRESETS, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(PRESETS)}"
        raise ValueError(f"which is no preset; {advice}")
    return value


def _task(value: str) -> str:
    if value not in TASKS:
        raise ValueError(f"which is no task; known are {', '.join(TASKS)}")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
AutoOrCount = Annotated[int | Literal["auto"], word_or_count("auto")]


class Prepare(Section):
    """Filters and the split."""

    min_characters: Count
    max_characters: Count
    min_letter_share: Share
    languages: list[Language]
    quality: list[Literal["gopher", "c4"]]
    mask_personal: list[Literal["email", "phone", "ip", "key"]]
    near_duplicates: Annotated[float, Field(ge=0, le=1)]
    decontaminate: bool
    weights: dict[SourceName, Positive]
    validation_share: Annotated[float, Field(gt=0, le=0.5)]
    test_share: Annotated[float, Field(gt=0, le=0.5)]


class Leakage(Section):
    """Test texts in training text."""

    ngram: Count
    record_share: Annotated[float, Field(gt=0, le=1)]
    max_share: Share


class Tokenizer(Section):
    """The vocabulary."""

    kind: Literal["byte_bpe", "bpe", "unigram", "wordpiece", "word", "character"]
    vocab_size: Annotated[int, Field(ge=512, lt=2**31)]


class StartFrom(Section):
    """A model folder whose shape, weights and tokenizer the pipeline goes on from.

    The hash is of its weights alone: stages/start.py says what holds for the files beside them.
    """

    path: Annotated[Path, Field(strict=False)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def config(self) -> TransformerConfig:
        """The shape of the model there. Raises ValueError where there is none."""
        try:
            return TransformerConfig(**json.loads((self.path / "config.json").read_text())["transformer"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            advice = "python -m lightning_modules.interop.huggingface import makes one"
            raise ValueError(f"start_from: {self.path} is no model folder ({error}): {advice}") from error


class ModelSection(Section):
    """The network's shape: a preset, and other values for any of its fields but those that the tokenizer decides.

    Or a model to start from, which has them all.
    """

    preset: Annotated[str, AfterValidator(_preset)] | None
    start_from: StartFrom | None

    def config(self, vocab_size: int, **fixed: Any) -> TransformerConfig:
        """The configuration, `fixed` fields set. Raises ValueError, the field's name first, for a contradiction.

        A model to start from may have more entries than its tokenizer; it keeps its own `vocab_size`.
        """
        own = self.model_dump(exclude_unset=True, exclude={"preset", "start_from"})
        if self.start_from is not None:
            for name in ("preset", *own):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: model.start_from decides it: {_ABSENT.get(name, 'remove it')}")
            return replace(self.start_from.config(), **fixed)
        if self.preset is None:
            raise ValueError(f"preset: name one ({', '.join(PRESETS)}), or give a model in start_from")
        return preset(self.preset, vocab_size=vocab_size, **(own | fixed))


_ABSENT = {"preset": "set it to null"}


_OF_THE_TOKENIZER = ("vocab_size", "pad_id", "bos_id", "eos_id")
if TYPE_CHECKING:
    Model = ModelSection
else:  # the fields stand once, in TransformerConfig
    Model = create_model(
        "Model",
        __base__=ModelSection,
        **{
            field.name: (field.type, None) for field in fields(TransformerConfig) if field.name not in _OF_THE_TOKENIZER
        },
    )


class Training(Section):
    """What pre-training and fine-tuning share: the optimiser, checkpoints, the devices."""

    optimizer: Literal["adamw", "muon", "adafactor"]
    schedule: Literal["inverse_sqrt", "linear", "cosine", "wsd", "constant"]
    warmup_steps: CountOrZero
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip: Positive
    accumulate: Count
    ema_decay: Dropout
    average_checkpoints: CountOrZero
    validate_every: Count
    checkpoint_every: Count
    keep_checkpoints: Count
    early_stopping_patience: CountOrZero
    on_loss_spike: Literal["ignore", "skip", "roll_back"]
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: AutoOrCount
    num_nodes: Count
    strategy: Literal["auto", "ddp", "fsdp", "tensor_parallel"]
    precision: Literal["auto", "32-true", "bf16-mixed"]
    compile: Literal["auto"] | bool
    recompute_activations: bool
    step_times: bool
    threads: AutoOrCount


class Pretrain(Training):
    """Learning from unlabelled text."""

    objective: Annotated[dict[str, float], PlainValidator(_objective)]
    corruption_rate: Annotated[float, Field(gt=0, lt=1)]
    mean_span_length: Annotated[float, Field(ge=1)]
    whole_words: bool
    sequence_length: Annotated[int, Field(ge=8)]
    packing: Literal["best_fit", "joined"]
    batch_size: Count
    steps: CountOrZero
    learning_rate: Positive
    validation_batches: Count


class Finetune(Training):
    """Learning a task, whichever."""

    batch_tokens: Count
    freeze_layers: CountOrZero
    lora_rank: CountOrZero
    choose_by: Literal["loss", "score"]
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
    engine: Literal["pytorch", "ctranslate2"]
    bootstrap_samples: Annotated[int, Field(ge=100)]
    threads: Count


class Promotion(Section):
    """What register asks of a model."""

    min_score: dict[Annotated[str, AfterValidator(_task)], Annotated[float, Field(ge=0, le=100)]]
    check_export: bool


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
    leakage: Leakage
    tokenizer: Tokenizer
    model: Model
    pretrain: Pretrain
    finetune: Finetune
    tasks: dict[str, TaskParams]
    evaluate: Evaluate
    promotion: Promotion
    tracking: Tracking
