"""What the models of a task answer to its test records, and how probable they find it and the references.

Writing takes the time: about 400 short texts a second on one core at demo size; likelihoods a fifth of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.baselines import baseline
from stages.console import progress
from stages.params import Params
from stages.report_table import unknown_words
from stages.tasks import Record, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine
    from lightning_modules.text_to_text import TextToText
    from stages.metrics import Reference


@dataclass(frozen=True)
class Texts:
    """The test records as a task's models see them."""

    ids: list[str]
    sources: list[str]
    targets: list[str]
    references: "list[Reference]"  # the target, or all texts that count as right
    starts: list[str]  # the answer's first character in its context; "" where the data does not say
    baseline: list[str]
    baseline_name: str


@dataclass(frozen=True)
class Answers:
    """What a model wrote, how probable it found that, and how probable the references (nats, tokens, bytes).

    None where a model gives no probabilities of the kind.
    """

    texts: list[str]
    probabilities: list[float] | None
    likelihood_N3: "npt.NDArray[np.float64] | None"
    cut: int = 0  # sources longer than the model reads
    unknown: float = 0.0  # share of the targets' tokens that stand for what the tokenizer does not know


def texts_of(about: Task, records: Sequence[Record], train: Path) -> Texts:
    """`records` of a test split, with the baseline's answers, for which some read `train`."""
    name, answers = baseline(about, records, train)
    return Texts(
        ids=[record["id"] for record in records],
        sources=list(map(about.source_text, records)),
        targets=list(map(about.target_text, records)),
        references=list(map(about.references, records)),
        starts=[record.get("answer_start") or "" for record in records],
        baseline=answers,
        baseline_name=name,
    )


def engine_of(params: Params, answering: "TextToText", folder: Path) -> "CTranslate2Engine | None":
    """What writes the texts instead of the model itself, where params.yaml says so; what does not write needs none."""
    from lightning_modules.transformer.model import Decoder, EncoderDecoder

    if params.evaluate.engine == "pytorch" or not isinstance(answering.model, Decoder | EncoderDecoder):
        return None
    from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine

    return CTranslate2Engine(folder)


def answers_of(
    answering: "TextToText", engine: "CTranslate2Engine | None", about: Task, texts: Texts, name: str
) -> Answers:
    """The model's, written by `engine` where there is one; `name` is on the progress bar."""
    import numpy as np

    from lightning_modules.answer_scores import confident_answers, target_likelihoods, written_probabilities
    from lightning_modules.transformer.heads import SpanReader
    from lightning_modules.transformer.model import Decoder, EncoderDecoder

    probabilities, likelihood_N3, unknown = None, None, 0.0
    if not isinstance(answering.model, SpanReader):  # which reads long sources in windows
        answering.source_ids(texts.sources)
    cut = answering.cut
    if cut:
        print(f"{name}: {cut} of {len(texts.sources)} sources are longer than the model reads, and are cut", flush=True)
    with progress(total=len(texts.sources), name=name, unit="text") as bar:
        if engine is not None:
            answers = engine.generate(texts.sources, done=bar.update)
            if about.kind != "text":
                probabilities = written_probabilities(answering, texts.sources, answers)
        elif about.kind == "text":
            answers = answering.generate(texts.sources, done=bar.update)
        else:
            sure = confident_answers(answering, texts.sources, bar.update)
            answers, probabilities = [answer for answer, _ in sure], [probability for _, probability in sure]
    if isinstance(answering.model, Decoder | EncoderDecoder):
        found = target_likelihoods(answering, texts.sources, texts.targets)
        likelihood_N3 = np.stack([found.nats_N, found.tokens_N, found.bytes_N], axis=1)
        unknown = float(found.unknown_N.sum() / found.tokens_N.sum())
        if unknown:
            print(f"{name}: {unknown_words(unknown)}", flush=True)
    return Answers(answers, probabilities, likelihood_N3, cut, unknown)
