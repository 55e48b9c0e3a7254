"""How the models that are in use do on texts they have not seen: the pre-trained one in bits per byte, champions by the
metrics of their tasks. Nothing is trained.

Costs at most 32 batches forward for each group of texts, and the decoding of `evaluate.max_records` texts for each.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.errors import PipelineError
from stages.console import progress
from stages.params import Params
from stages.registry import CHAMPION, Registry
from stages.tasks import TASKS, Record

if TYPE_CHECKING:
    from lightning_modules.text_to_text import TextToText

MODEL = Path("models/pretrained")
Json = dict[str, Any]


def bits_per_byte(params: Params, texts: Sequence[str]) -> Json:
    """What the stage evaluate_pretraining finds of models/pretrained on `texts`: {"score", "low", "high", "batches"}.

    With objectives other than causal_lm these are bits per byte of what was hidden. Raises PipelineError where the
    texts do not fill a row of pretrain.sequence_length, or the model was not pre-trained here.
    """
    from lightning_modules.model_folder import load_tokenizer, sha256
    from lightning_modules.token_store import StoreMeta, token_dtype, write_meta, write_shard
    from stages.encoding import Encoder
    from stages.evaluate_pretraining import TOKENS, evaluate_pretraining

    if not params.pretrain.steps:
        raise PipelineError("models/pretrained was not pre-trained here (pretrain.steps is 0): by what is not known")
    encoder = Encoder(load_tokenizer(MODEL))
    ids, lengths = encoder.encode(list(texts))
    with tempfile.TemporaryDirectory() as folder:  # in which the stage finds what it reads, at the usual places
        store = Path(folder) / TOKENS
        store.mkdir(parents=True)
        documents, place, dtype = [], 0, token_dtype(encoder.entries)
        for length in lengths:
            documents.append(ids[place : place + length].tolist())
            place += length
        written, tokens = write_shard(store, 0, documents, dtype)
        size = sum(len(text.encode()) for text in texts)
        meta = StoreMeta(dtype, encoder.entries, sha256(MODEL / "tokenizer.json"), 1, written, tokens, size)
        write_meta(store, meta)
        (Path(folder) / MODEL).parent.mkdir()
        (Path(folder) / MODEL).symlink_to(MODEL.resolve(), target_is_directory=True)
        with chdir(folder):
            found = evaluate_pretraining(params)
    if "bits_per_byte" not in found:
        length = params.pretrain.sequence_length
        raise PipelineError(f"{tokens + written} tokens of text do not fill a row of {length} (sequence_length)")
    score: Json = found["bits_per_byte"]
    return score | {"batches": found["batches"]}


def champion_scores(
    params: Params, task: str, client: Any, groups: Mapping[str, Sequence[Record]]
) -> tuple[str, dict[str, Json]]:
    """The champion's version, and for each group with records its scores: {"records", metric: {"score", …}, …}.

    Raises PipelineError where the task has no champion, or it cannot be brought here or read.
    """
    import torch

    from lightning_modules.text_to_text import TextToText

    registry = Registry(client, f"{params.tracking.registered_model}-{task}")
    version = registry.alias(CHAMPION)
    if version is None:
        raise PipelineError(f"{registry.name} has no champion yet")
    torch.set_num_threads(params.evaluate.threads)
    with registry.downloaded(f"models:/{registry.name}/{version}/artifacts/{task}") as folder:
        champion = TextToText.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    return version, {name: scores(params, task, champion, records) for name, records in groups.items() if records}


def scores(params: Params, task: str, model: "TextToText", records: Sequence[Record]) -> Json:
    """{"records", metric: {"score", "low", "high"}} of a model's answers, by the metrics that evaluate uses."""
    from stages.scores import score_task

    about = TASKS[task]
    sources = [about.source_text(record) for record in records]
    with progress(total=len(sources), name=f"{task} champion", unit="text") as bar:
        answers = model.generate(sources, done=bar.update)
    references = list(map(about.references, records))
    chance = params.evaluate.bootstrap_samples, params.seed
    table = score_task(about.metrics, references, {"champion": answers}, *chance)["metrics"]
    return {"records": len(records)} | {metric: systems["champion"] for metric, systems in table.items()}
