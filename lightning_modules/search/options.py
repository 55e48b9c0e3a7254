"""What decoding is told and what it gives. Plain data: importing it costs nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Stop = Literal["exact", "likely", "full"]


@dataclass(frozen=True)
class Decoding:
    """How an answer is searched for. As it stands: greedily, the most probable token at each step.

    Beam search stops writing for a source (n, of at most `max_tokens`: tokens written; p: `length_penalty`)
    - exact: when no unfinished text can still come among the `answers` best, whatever follows: log-probabilities only
      fall, so its score is at most its present sum ÷ max_tokens^p (p > 0). The same answers as without stopping; for p
      above 0 some times as many steps as `likely`, for 0 no more.
    - likely: when `beams` texts are finished and the best unfinished one, at its present length, scores no better than
      the worst of them. Hugging Face's default (`early_stopping=False`).
    - full: when `beams` texts are finished (`early_stopping=True`; CTranslate2's rule).
    """

    max_tokens: int  # most tokens written, </s> among them; 1 or more
    beams: int = 1  # unfinished texts kept for each source; 1: no beam search
    length_penalty: float = 1.0  # a text's score is its log-probability ÷ tokens^this; 0: none; above 1: long ones win
    stop: Stop = "likely"
    answers: int = 1  # given for each source, best first: from beam search up to `beams`, or so many drawn
    sample: bool = False  # draw each token instead of taking the most probable
    temperature: float = 1.0  # of drawing: logits are divided by it; above 0
    top_k: int = 0  # draw from the so many most probable tokens; 0: from all
    top_p: float = 1.0  # … from the fewest that together have this probability; above 0, at most 1
    min_p: float = 0.0  # … from those at least this share as probable as the most probable; 0 to 1
    repetition_penalty: float = 1.0  # scores of tokens written before ÷ it (× if negative); above 0; 1: none
    no_repeat_ngram: int = 0  # no sequence of so many tokens twice in a text; 0: any
    seed: int = 0  # of drawing: a source gets the same draws whatever stands beside it

    def __post_init__(self) -> None:
        """Raises ValueError, with the name of the field first, for an impossible value or fields that contradict."""
        for field, problem in self._problems():
            raise ValueError(f"{field}: {problem}")

    @property
    def restrains(self) -> bool:
        """Whether what was written bears on what may follow, beyond what the model says."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0

    def _problems(self) -> Iterator[tuple[str, str]]:
        for field in ("max_tokens", "beams", "answers"):
            if getattr(self, field) < 1:
                yield field, f"{getattr(self, field)} is not 1 or more"
        for field in ("top_k", "no_repeat_ngram"):
            if getattr(self, field) < 0:
                yield field, f"{getattr(self, field)} is below 0"
        for field in ("temperature", "repetition_penalty", "top_p"):
            if not getattr(self, field) > 0:
                yield field, f"{getattr(self, field)} is not above 0"
        for field in ("top_p", "min_p"):
            if not 0 <= getattr(self, field) <= 1:
                yield field, f"{getattr(self, field)} is not between 0 and 1"
        if self.stop not in get_args(Stop):
            yield "stop", f"{self.stop!r} is none of {', '.join(get_args(Stop))}"
        if self.sample and self.beams > 1:
            yield "sample", "drawing needs no beams: set beams to 1, or sample to false"
        if not self.sample and self.answers > self.beams:
            yield "answers", f"{self.answers} need as many beams, not {self.beams}, or sample"
        if not self.sample and (self.temperature, self.top_k, self.top_p, self.min_p) != (1.0, 0, 1.0, 0.0):
            yield "sample", "must be true for temperature, top_k, top_p or min_p to count"


@dataclass(frozen=True)
class Hypothesis:
    """A text that was written: ids without <s> and </s>, and its score.

    The score is the sum of the log-probabilities (natural) of its tokens ÷ (their number)^length_penalty. </s> is one
    of them, where the text ended with it rather than at the limit: Hugging Face's `sequences_scores`. Beam search under
    a repetition penalty sums the penalised ones, as it compares them; greedy writing and drawing those of the model.
    """

    ids: list[int]
    score: float
