"""What a model must be before it may be champion: a gate that can refuse it, and a paired comparison of two versions.

A version is better than another where the 95 % interval of the difference of their scores on the same test texts lies
above 0, and chance alone gives one as large in less than 5 % of cases. The gate loads the weights and runs the export:
seconds for a small model, some ten where that is to ONNX. A comparison takes a second; one with a version that was
scored on other texts, the download and decoding, too.
"""

import importlib.util
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.election import Verdict
from stages.metrics import Reference
from stages.report_table import Interval
from stages.scores import compare

PYTORCH = "pytorch"  # the value of evaluate.engine with which models answer by themselves
SYSTEM = "pretrained"  # in predictions.jsonl: the model that is registered
_EXPORTED = 64  # texts on which an export must write the same


@dataclass(frozen=True)
class Scored:
    """Test texts, what counts as right, and what a model answered."""

    sources: list[str]
    references: list[Reference]
    answers: list[str]


class Judge:
    """Compares versions by what they answer to the texts of `mine`, whose version is `number`, all by one engine.

    `logged(number, engine)` gives the answers of a version as they were logged, if that engine wrote them, and
    `decode(number, sources, engine)` has it answer anew; both raise PipelineError where they cannot. Where a version
    cannot answer by the engine of `mine`, such as CTranslate2, all answer by PyTorch.
    """

    def __init__(
        self,
        mine: Scored,
        number: str,
        metric: str,
        samples: int,
        seed: int,
        engine: str,
        logged: Callable[[str, str], Scored],
        decode: Callable[[str, list[str], str], list[str]],
    ) -> None:
        self._mine, self._metric, self._samples, self._seed = mine, metric, samples, seed
        self._engine, self._logged, self._decode = engine, logged, decode
        self._answers, self._about = {number: mine.answers}, ""

    def __call__(self, one: str, other: str) -> Verdict:
        """Whether version `one` is better than `other`; not, where one of them cannot answer."""
        for number in (one, other):
            try:
                self._answers[number] = self._answers.get(number) or self._answers_of(number)
            except PipelineError as error:
                if self._engine == PYTORCH:
                    return Verdict(False, f"version {number} cannot be compared on these test texts: {error}")
                self._about = f"; both answered by PyTorch, as version {number} cannot by {self._engine}: {error}"
                self._engine, self._answers = PYTORCH, {}
                return self(one, other)
        found = compare(
            self._metric, self._mine.references, self._answers[one], self._answers[other], self._samples, self._seed
        )
        better = Interval(**found).side > 0
        interval = f"{found['low']:+.2f} to {found['high']:+.2f}"
        return Verdict(
            better,
            f"{'better' if better else 'not surely better'} than version {other}: "
            f"{self._metric} {found['score']:+.2f}, 95 % interval {interval}, p = {found['p']:.2g}{self._about}",
            {
                "compared_with": other,
                "difference": repr(found["score"]),
                "difference_interval": f"{found['low']} to {found['high']}",
                "p_value": repr(found["p"]),
            },
        )

    def _answers_of(self, number: str) -> list[str]:
        try:
            logged = self._logged(number, self._engine)
        except PipelineError:  # by another engine, their run was deleted, or the version is older than their logging
            return self._decode(number, self._mine.sources, self._engine)
        if (logged.sources, logged.references) == (self._mine.sources, self._mine.references):
            return logged.answers
        return self._decode(number, self._mine.sources, self._engine)


def read_scored(file: Path) -> Scored:
    """The answers of the registered system. Raises PipelineError where they are not there."""
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        right = [row.get("references", row["target"]) for row in rows]
        return Scored([row["source"] for row in rows], right, [row[SYSTEM] for row in rows])
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
    """Whether the model does the same once it is exported; and in words what was found. Nothing stays on the disk.

    To CTranslate2 in float32, where it must write the same to `sources`; what writes nothing, or has no counterpart
    there, to ONNX, where its numbers must be the same. True as well where neither can be checked.
    """
    from lightning_modules.interop.ctranslate2 import export
    from lightning_modules.interop.ctranslate2_spec import refusals as no_counterpart
    from lightning_modules.model_folder import load_model
    from lightning_modules.transformer.model import Decoder, EncoderDecoder

    model = load_model(folder)
    if not isinstance(model, EncoderDecoder | Decoder):
        return _check_onnx(folder, f"a {type(model).__name__} writes no text")
    if reasons := no_counterpart(model.config):
        why = f"CTranslate2 has no counterpart ({reasons[0]})"
        if model.config.bidirectional_prefix:
            return True, f"not checked: {why}, and a graph of ONNX is not told where the prefix ends"
        return _check_onnx(folder, why)
    if not _installed("ctranslate2"):
        return True, "not checked: CTranslate2 is not installed"
    try:
        said = _said(lambda output: export(folder, output, texts=sources[:_EXPORTED]))
    except PipelineError as error:
        return False, f"exported, it does not write the same: {_reason(error)}"
    return True, said[0].partition(": ")[2]


def _check_onnx(folder: Path, why: str) -> tuple[bool, str]:
    """Whether the model's numbers are the same in ONNX, for what CTranslate2 cannot take: `why`."""
    from lightning_modules.interop.onnx import export

    for library in ("onnxscript", "onnxruntime"):
        if not _installed(library):
            return True, f"not checked: {why}, and {library} is not installed"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torch's own, about its inner workings, as the warnings
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = _said(lambda output: export(folder, output))
    except PipelineError as error:
        return False, f"exported to ONNX, it does not give the same numbers: {_reason(error)}"
    return True, "in ONNX: " + ", ".join(line.partition(" of those of ")[0].rpartition("/")[2] for line in said)


def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _said(export: Callable[[Path], None]) -> list[str]:
    """The lines that an export prints, to a folder that is gone afterwards."""
    said = StringIO()
    with tempfile.TemporaryDirectory() as output, redirect_stdout(said):
        export(Path(output) / "exported")
    return said.getvalue().splitlines()


def _reason(error: PipelineError) -> str:
    return str(error).removesuffix("; nothing was kept")
