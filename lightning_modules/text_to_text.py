"""A fine-tuned model in use: texts in, texts out, whether it writes them, points at them, or names a class.

In batches of similar length. Decoding takes the time where texts are written; elsewhere one pass over each source.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from lightning_modules.batching import pad, source_tensors
from lightning_modules.decoding import Decoding, decode
from lightning_modules.errors import PipelineError
from lightning_modules.model_folder import Model, load_model, load_tokenizer, read_config
from lightning_modules.reading import SpanAnswer, answer_spans, class_probabilities, longest_first
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import Encoder, lay_out_for_steps
from lightning_modules.windows import kept

BATCH_TOKENS = 8192
Done = Callable[[int], object]


def _nothing(count: int) -> None:
    """Nobody wants to know."""


def _checked(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises TypeError where they are one text, or one of them is none."""
    if isinstance(texts, str):
        raise TypeError("a list of texts is wanted, not a text by itself: put it in [ ]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] is of type {type(text).__name__}: a text (str) is wanted")
    return list(texts)


class Usage(NamedTuple):
    """How a task uses a model, as the config.json beside it says."""

    max_source: int  # tokens of a source, </s> included; of a longer one the end is lost, or the beginning (`keep_end`)
    decoding: Decoding
    keep_end: bool
    threshold: float | None  # by how much an answer's score must exceed that of no answer; None: there always is one


def read_usage(folder: Path) -> Usage:
    """From config.json: `limits` (`max_source_tokens`, `max_target_tokens`, `keep_end`) and, where they are there,
    `decoding` (fields of `Decoding` other than greedy search's) and `threshold`.

    Raises PipelineError where the model was not fine-tuned, a limit is missing, or `decoding` is impossible.
    """
    config = read_config(folder)
    limits = config.get("limits")
    if not limits:
        raise PipelineError(f"{folder} holds no fine-tuned model: fine-tune it for a task first")
    try:
        longest, most = limits["max_source_tokens"], limits["max_target_tokens"]
        decoding = Decoding(**{"max_tokens": most} | config.get("decoding", {}))
    except KeyError as error:
        raise PipelineError(f"{folder}/config.json: limits has no {error}: fine-tune the model again") from error
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{folder}/config.json: decoding: {error}") from error
    return Usage(longest, decoding, bool(limits.get("keep_end", False)), config.get("threshold"))


class TextToText:
    """A model in use: a text for each text it is given."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        max_source: int,
        decoding: Decoding,
        keep_end: bool = False,
        threshold: float | None = None,
    ) -> None:
        """`decoding` says how a model that writes does; its `max_tokens` is also the longest span of one that points.

        A source of more than `max_source` tokens loses its end, or its beginning with `keep_end`. A `threshold` is for
        a model that was shown questions without an answer. Raises ValueError for an encoder without a head.
        """
        if isinstance(model, Encoder):
            raise ValueError("an encoder that was not fine-tuned answers nothing")
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.max_source, self.keep_end, self.threshold = max_source, keep_end, threshold
        self.device = next(model.parameters()).device
        self.cut = 0  # sources so far that were too long to be read whole

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "TextToText":
        """The model in `folder`, ready on `device`. Raises PipelineError where it is no fine-tuned model."""
        usage = read_usage(folder)
        model, tokenizer = load_model(folder).to(device).eval(), load_tokenizer(folder)
        if device == "cpu":
            lay_out_for_steps(model)
        try:
            return cls(model, tokenizer, *usage)
        except ValueError as error:
            raise PipelineError(f"{folder}: {error}: fine-tune it for a task first") from error

    def generate(
        self,
        texts: Sequence[str],
        batch_tokens: int = BATCH_TOKENS,
        done: Done = _nothing,
        decoding: Decoding | None = None,
    ) -> list[str]:
        """A text for each of `texts`, in their order; `done(count)` is called as they are finished.

        A source longer than the model was trained for is cut, unless the model points: then it is read in windows.
        `decoding` instead of the model's own bears on models that write. One that points gives the source's own
        characters, or "" for no answer; one that names classes the most probable label. Raises TypeError for what is
        no list of texts.
        """
        if isinstance(self.model, SpanReader):
            return [answer.text for answer in self.spans(texts, batch_tokens, done)]
        if isinstance(self.model, Classifier):
            best = class_probabilities(self.model, self.source_ids(texts), batch_tokens, done).argmax(dim=1)
            return [self.model.labels[number] for number in best.tolist()]
        config, outputs, sources = self.model.config, [""] * len(texts), self.source_ids(texts)
        for batch in longest_first(list(map(len, sources)), batch_tokens):
            ids_BS = pad([sources[i] for i in batch], config.pad_id)
            source_BS, real_BS = source_tensors(ids_BS, config.pad_id, pad_left=config.architecture == "decoder")
            real_BS = None if real_BS is None else real_BS.to(self.device)
            found = decode(self.model, source_BS.to(self.device), real_BS, decoding or self.decoding)
            written = self.tokenizer.decode_batch([hypotheses[0].ids for hypotheses in found])
            for i, text in zip(batch, written, strict=True):
                outputs[i] = text.strip()
            done(len(batch))
        return outputs

    def spans(self, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS, done: Done = _nothing) -> list[SpanAnswer]:
        """What a model that points gives for each text, with its place and probability."""
        assert isinstance(self.model, SpanReader), "only a model that points knows places"
        longest = self.max_source, self.decoding.max_tokens
        return answer_spans(self.model, self.tokenizer, _checked(texts), *longest, self.threshold, batch_tokens, done)

    def scores(
        self, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS, done: Done = _nothing
    ) -> list[dict[str, float]]:
        """The probability of each label for each text, by a model that names classes."""
        assert isinstance(self.model, Classifier), "only a model that names classes knows their probabilities"
        probabilities = class_probabilities(self.model, self.source_ids(texts), batch_tokens, done)
        return [dict(zip(self.model.labels, row, strict=True)) for row in probabilities.tolist()]

    def source_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What the model reads of each text, </s> included; those that are cut are counted in `cut`."""
        encodings = self.tokenizer.encode_batch_fast(_checked(texts), add_special_tokens=False)
        self.cut += sum(len(encoding.ids) >= self.max_source for encoding in encodings)
        rows = [encoding.ids for encoding in encodings]
        return [[*ids[kept(len(ids), self.max_source, self.keep_end)], self.model.config.eos_id] for ids in rows]
