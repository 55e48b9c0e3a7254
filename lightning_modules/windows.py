"""Where an answer stands in a source, and how a source too long for the model is read: in overlapping windows.

Pure functions over offsets and lengths, without torch; each costs a bisection or a few sums.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

CONTEXT = " context: "  # as in T5's "question: … context: …" (Raffel et al. 2020, arXiv:1910.10683, appendix D.15)
Offsets = Sequence[tuple[int, int]]  # of each token: its first character, and the one behind its last


def context_begin(source: str) -> int:
    """The character that the context begins with: behind the first " context: "; 0 where there is none."""
    found = source.find(CONTEXT)
    return 0 if found < 0 else found + len(CONTEXT)


def tokens_before(offsets: Offsets, character: int) -> int:
    """How many tokens end before `character`, which stands in the next one, if in any."""
    return bisect_right(offsets, character, key=lambda token: token[1])


def covering(offsets: Offsets, begin: int, end: int) -> tuple[int, int]:
    """First and last of the tokens that the characters from `begin` to before `end` stand in."""
    return tokens_before(offsets, begin), bisect_left(offsets, end, key=lambda token: token[0]) - 1


def kept(tokens: int, longest: int, keep_end: bool = False) -> slice:
    """Which of a text's tokens are read where it may have `longest`, </s> included: the first, or the last."""
    return slice(max(tokens - longest + 1, 0), None) if keep_end else slice(longest - 1)


class Windows(NamedTuple):
    """A source cut into windows: each has the question's first tokens, `room` tokens of the context, and </s>."""

    tokens: int  # of the source
    question: int  # tokens of it that each window begins with
    room: int
    begins: range  # the tokens with which the windows' parts of the context begin

    def end(self, begin: int) -> int:
        """The token behind the context's part in the window that begins with `begin`."""
        return min(begin + self.room, self.tokens)

    def null(self, begin: int) -> int:
        """The column of its </s>."""
        return self.question + self.end(begin) - begin


def cut_windows(tokens: int, context: int, longest: int) -> Windows:
    """Windows of at most `longest` tokens, </s> included, over a source whose first `context` tokens are the question.

    They begin half a window's room apart, so that every stretch of the context that is no longer than that stands
    whole in one of them (Devlin et al. 2019's released code for SQuAD strides likewise). A source that fits is one
    window. A question longer than half a window is cut.
    """
    most = longest - 1
    question = context if tokens <= most else min(context, most // 2)
    room = most - question
    stride = max(room // 2, 1)
    beyond = max(tokens - context - room, 0)  # what the first window does not reach
    return Windows(tokens, question, room, range(context, context + beyond + stride, stride))
