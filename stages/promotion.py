"""What a model must be before it may be champion: a gate that can refuse it, and a paired comparison of two versions.

A version is better than another where the 95 % interval of the difference of their scores on the same test texts lies
above 0. The gate loads the weights and runs the export: seconds for a small model. A comparison takes a second; one
with a version that was scored on other texts, the download and decoding, too.
"""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.election import Verdict
from stages.scores import compare

SYSTEM = "pretrained"  # in predictions.jsonl: the model that is registered
_EXPORTED = 64  # texts on which an export must write the same


@dataclass(frozen=True)
class Scored:
    """Test texts, and what a model answered."""

    sources: list[str]
    references: list[str]
    answers: list[str]


class Judge:
    """Compares versions by what they answer to the texts of `mine`, whose version is `number`.

    `logged(number)` gives the answers of another version as they were logged, `decode(number, sources)` has it answer
    anew; both raise PipelineError where they cannot.
    """

    def __init__(
        self,
        mine: Scored,
        number: str,
        metric: str,
        samples: int,
        seed: int,
        logged: Callable[[str], Scored],
        decode: Callable[[str, list[str]], list[str]],
    ) -> None:
        self._mine, self._metric, self._samples, self._seed = mine, metric, samples, seed
        self._logged, self._decode = logged, decode
        self._answers = {number: mine.answers}

    def __call__(self, one: str, other: str) -> Verdict:
        """Whether version `one` is better than `other`; not, where one of them cannot answer."""
        for number in (one, other):
            try:
                self._answers[number] = self._answers.get(number) or self._answers_of(number)
            except PipelineError as error:
                return Verdict(False, f"version {number} cannot be compared on these test texts: {error}")
        found = compare(
            self._metric, self._mine.references, self._answers[one], self._answers[other], self._samples, self._seed
        )
        better = found["low"] > 0
        interval = f"{found['low']:+.2f} to {found['high']:+.2f}"
        return Verdict(
            better,
            f"{'better' if better else 'not surely better'} than version {other}: "
            f"{self._metric} {found['score']:+.2f}, 95 % interval {interval}, p = {found['p']:.2g}",
            {
                "compared_with": other,
                "difference": repr(found["score"]),
                "difference_interval": f"{found['low']} to {found['high']}",
                "p_value": repr(found["p"]),
            },
        )

    def _answers_of(self, number: str) -> list[str]:
        try:
            logged = self._logged(number)
        except PipelineError:  # their run was deleted, or the version is older than the logging of answers
            return self._decode(number, self._mine.sources)
        if (logged.sources, logged.references) == (self._mine.sources, self._mine.references):
            return logged.answers
        return self._decode(number, self._mine.sources)


def read_scored(file: Path) -> Scored:
    """The answers of the registered system. Raises PipelineError where they are not there."""
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return Scored(*([row[name] for row in rows] for name in ("source", "target", SYSTEM)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{file} holds no answers of {SYSTEM} ({error!r}): run evaluate again") from error


def refusals(folder: Path, score: float, least: float | None, leaked: float, most_leaked: float) -> list[str]:
    """Why a model must not be served: its score, leaked test texts, weights that are no numbers. Empty: it may be."""
    import torch
    from safetensors.torch import load_file

    reasons = []
    if not math.isfinite(score):
        reasons.append(f"its score is {score}")
    elif least is not None and score < least:
        reasons.append(f"its score, {score:.2f}, is below promotion.min_score, {least:g}")
    if leaked > most_leaked:
        reasons.append(f"{leaked:.1%} of its test records stand in training text, leakage.max_share is {most_leaked}")
    weights = load_file(folder / "model.safetensors")
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        reasons.append(f"{len(broken)} of its {len(weights)} tensors hold what is no finite number, first {broken[0]}")
    return reasons


def check_export(folder: Path, sources: Sequence[str]) -> tuple[bool, str]:
    """Whether the model, exported to CTranslate2 in float32, writes the same; and in words what was found.

    True as well where that cannot be checked: the model has no counterpart there, or CTranslate2 is not installed.
    """
    from lightning_modules.interop.ctranslate2 import export
    from lightning_modules.interop.ctranslate2_spec import refusals as no_counterpart
    from lightning_modules.model_folder import load_model
    from lightning_modules.transformer.model import Decoder, EncoderDecoder

    model = load_model(folder)
    if not isinstance(model, EncoderDecoder | Decoder):
        return True, f"not checked: a {type(model).__name__} writes no text"
    if reasons := no_counterpart(model.config):
        return True, f"not checked: CTranslate2 has no counterpart ({reasons[0]})"
    said = StringIO()
    try:
        with tempfile.TemporaryDirectory() as output, redirect_stdout(said):
            export(folder, Path(output) / "exported", texts=sources[:_EXPORTED])
    except ImportError:
        return True, "not checked: CTranslate2 is not installed"
    except PipelineError as error:
        return False, f"exported, it does not write the same: {str(error).removesuffix('; nothing was kept')}"
    return True, said.getvalue().strip().partition(": ")[2]
