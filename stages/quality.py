"""Rules that tell running text from menus, lists, spam and code on web pages: Gopher's and C4's.

Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1. C4: Raffel et al. 2020, JMLR 21(140), section 2.2, without
its list of bad words. Words are what white space parts, so a script without spaces fails them. Pure functions of
strings; Gopher's rules cost about 2 µs a word, C4's 0.1 µs a character.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from string import punctuation
from typing import NamedTuple

# Gopher, "Quality filtering"
_WORDS = (50, 100_000)  # in a document
_WORD_LENGTH = (3, 10)  # characters, the mean
_SYMBOLS_PER_WORD = 0.1  # hash signs, or ellipses
_BULLET_LINES = 0.9  # share of the lines that may start with one
_ELLIPSIS_LINES = 0.3  # share of the lines that may end with one
_ALPHABETIC_WORDS = 0.8  # share of the words that must hold a letter
_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_STOP_WORDS_NEEDED = 2  # different ones
# Gopher, table A1: largest share of a document's characters, or of its lines and paragraphs
_REPEATED = {"lines": 0.3, "paragraphs": 0.3}
_REPEATED_CHARACTERS = {"lines": 0.2, "paragraphs": 0.2}
_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}  # n → share of the characters in the most frequent n-gram
_REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # … in n-grams that stood before
# C4, section 2.2, in the numbers of its first version; the code in TensorFlow Datasets has 5 words and 3 sentences
_WORDS_IN_LINE = 3
_SENTENCES = 5
_POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", re.I)
_CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")
_END_MARKS = (".", "!", "?", '"', "”", "»", "。", "！", "？")

_BULLETS = ("•", "‣", "▪", "●", "◦", "-", "*")
_ELLIPSES = ("...", "…")
_ELLIPSIS = re.compile(r"\.\.\.|…")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’»)\]]*(?=\s|$)|[。！？]+")
_BLANK_LINES = re.compile(r"\n{3,}")


class Verdict(NamedTuple):
    """What the rules left of a text, and what they took: `rule` is the one that drops all of it, "" where none does."""

    text: str
    rule: str = ""
    detail: str = ""  # what the rule found
    removed: Sequence[tuple[str, str]] = ()  # (rule, line), for lines taken out


def judge(text: str, sets: Sequence[str], english: bool = True) -> Verdict:
    """Applies sets of rules (gopher, c4) one after the other; the first rule that drops the text ends it.

    Gopher's stop words are English: `english=False` leaves that rule out.
    """
    verdict = Verdict(text)
    for name in sets:
        found = _c4(verdict.text) if name == "c4" else _gopher(verdict.text, english)
        verdict = found._replace(removed=(*verdict.removed, *found.removed))
        if verdict.rule:
            break
    return verdict


def _gopher(text: str, english: bool) -> Verdict:
    for rule, detail in _gopher_problems(text, english):
        return Verdict(text, f"gopher_{rule}", detail)
    return Verdict(text)


def _gopher_problems(text: str, english: bool) -> Iterator[tuple[str, str]]:
    words, lines = text.split(), [line for line in text.split("\n") if line]
    if not _WORDS[0] <= len(words) <= _WORDS[1]:
        yield "word_count", f"{len(words)} words"
        return  # what follows divides by their number
    mean = sum(map(len, words)) / len(words)
    if not _WORD_LENGTH[0] <= mean <= _WORD_LENGTH[1]:
        yield "word_length", f"{mean:.1f} characters a word"
    for symbol, number in (("#", text.count("#")), ("…", len(_ELLIPSIS.findall(text)))):
        if number / len(words) > _SYMBOLS_PER_WORD:
            yield "symbols", f"{number / len(words):.2f} {symbol} a word"
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    if bullets > _BULLET_LINES:
        yield "bullet_lines", f"{bullets:.0%} of the lines"
    ellipses = sum(line.endswith(_ELLIPSES) for line in lines) / len(lines)
    if ellipses > _ELLIPSIS_LINES:
        yield "ellipsis_lines", f"{ellipses:.0%} of the lines"
    alphabetic = sum(any(map(str.isalpha, word)) for word in words) / len(words)
    if alphabetic < _ALPHABETIC_WORDS:
        yield "alphabetic_words", f"{alphabetic:.0%} of the words"
    if english:
        found = _STOP_WORDS.intersection(word.strip(punctuation).lower() for word in words)
        if len(found) < _STOP_WORDS_NEEDED:
            yield "stop_words", ", ".join(sorted(found)) or "none"
    yield from _repetition(words, lines, [part for part in text.split("\n\n") if part])


def _repetition(words: list[str], lines: list[str], paragraphs: list[str]) -> Iterator[tuple[str, str]]:
    """Gopher's table A1. Shares of characters leave white space between words out."""
    for name, parts in (("paragraphs", paragraphs), ("lines", lines)):
        again = _seen_before(parts)
        share = len(again) / len(parts)
        if share > _REPEATED[name]:
            yield f"repeated_{name}", f"{share:.0%} of the {name}"
        share = sum(map(len, again)) / sum(map(len, parts))
        if share > _REPEATED_CHARACTERS[name]:
            yield f"repeated_{name}_characters", f"{share:.0%} of the characters"
    total = sum(map(len, words))
    for n, most in _TOP_NGRAM.items():
        gram, times = Counter(_ngrams(words, n)).most_common(1)[0]
        share = times * sum(map(len, gram)) / total
        if times > 1 and share > most:
            yield f"top_{n}_gram", f"{share:.0%} of the characters: {' '.join(gram)}"
    for n, most in _REPEATED_NGRAMS.items():
        share = repeated_characters(words, n) / total
        if share > most:
            yield f"repeated_{n}_grams", f"{share:.0%} of the characters"


def _seen_before(parts: list[str]) -> list[str]:
    """All but the first of equal parts."""
    seen, again = set[str](), list[str]()
    for part in parts:
        if part in seen:
            again.append(part)
        seen.add(part)
    return again


def _ngrams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def repeated_characters(words: list[str], n: int) -> int:
    """Characters of the words that stand in an n-gram which stood before; none counts twice."""
    seen, end, characters = set[tuple[str, ...]](), 0, 0
    for start, gram in enumerate(_ngrams(words, n)):
        if gram in seen:
            characters += sum(map(len, words[max(start, end) : start + n]))
            end = start + n
        else:
            seen.add(gram)
    return characters


def _c4(text: str) -> Verdict:
    """Takes lines out, then drops texts with too little left. A line that ends with an ellipsis does not end."""
    low = text.lower()
    for mark, rule in (("lorem ipsum", "c4_lorem_ipsum"), ("{", "c4_curly_bracket")):
        place = low.find(mark)
        if place >= 0:
            return Verdict(text, rule, text[max(place - 40, 0) : place + 40])
    lines, removed, sentences = list[str](), list[tuple[str, str]](), 0
    for whole in text.split("\n"):
        line = " ".join(_CITATION.sub("", whole).split()) if "[" in whole else whole
        rule = _line_problem(line) if line else ""
        if rule:
            removed.append((rule, whole))
        else:
            lines.append(line)
            sentences += len(_SENTENCE_END.findall(line))
    left = _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()
    if sentences < _SENTENCES:
        return Verdict(text, "c4_sentences", f"{sentences} in the lines that are left", removed)
    return Verdict(left, removed=removed)


def _line_problem(line: str) -> str:
    if not line.endswith(_END_MARKS) or line.endswith("..."):
        return "c4_line_end"
    if len(line.split()) < _WORDS_IN_LINE:
        return "c4_line_words"
    if "javascript" in line.lower():
        return "c4_line_javascript"
    return "c4_line_policy" if _POLICY.search(line) else ""
