"""Gopher's and C4's rules: a good text passes them all, and each is broken by one change that breaks no other."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.quality import judge, repeated_characters

WORDS = [
    *("river", "mountain", "teacher", "window", "garden", "letter", "summer", "market", "bridge", "forest", "island"),
    *("kitchen", "doctor", "village", "picture", "engine", "harbour", "morning", "evening", "winter", "station"),
    *("number", "paper", "season", "animal", "winner", "corner", "farmer", "driver", "singer"),
]


def sentence(draw: random.Random, words: int = 9) -> str:
    return " ".join(["The", *draw.sample(WORDS, words - 3), "of", draw.choice(WORDS)]) + "."


def page(lines: int = 12) -> str:
    draw = random.Random(1)
    return "\n".join(sentence(draw) for _ in range(lines))


LINES = page().split("\n")


def test_a_good_page_passes_and_stays_as_it_is() -> None:
    for sets in (["gopher"], ["c4"], ["c4", "gopher"], []):
        verdict = judge(page(), sets)
        assert (verdict.text, verdict.rule, list(verdict.removed)) == (page(), "", [])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (" ".join(page().split()[:49]), "word_count"),
        (" ".join(page().split()[:50]), ""),
        ("of the " + "ab " * 100_000, "word_count"),
        (" ".join(f"{word[:2]}" for word in page(20).split()), "word_length"),
        (page().replace(" ", "-and-on-and-") + " of the" * 40, "word_length"),
        (page().replace(".", "##"), "symbols"),
        (page().replace(".", " #"), ""),
        (page().replace(".", "…").replace(" ", "… "), "symbols"),
        ("\n".join(f"• {line}" for line in LINES), "bullet_lines"),
        ("\n".join([*(f"- {line}" for line in LINES[:-2]), *LINES[-2:]]), ""),
        ("\n".join([*(line[:-1] + "..." for line in LINES[:4]), *LINES[4:]]), "ellipsis_lines"),
        ("\n".join([*(line[:-1] + "..." for line in LINES[:3]), *LINES[3:]]), ""),
        ("\n".join(f"{line} {n}11 {n}22 {n}33" for n, line in enumerate(LINES)), "alphabetic_words"),
        ("\n".join(f"{line} {n}11 {n}22" for n, line in enumerate(LINES)), ""),
        (page().replace("The", "Das").replace(" of ", " von "), "stop_words"),
        (page().replace("The", "Das"), "stop_words"),
        ("\n".join(LINES + LINES[:6]), "repeated_lines"),
        ("\n".join(LINES + [" ".join(LINES[:4])] * 2), "repeated_lines_characters"),
        ("\n\n".join(LINES + LINES[:6]), "repeated_paragraphs"),
        ("\n\n".join(LINES + [" ".join(LINES[:6])] * 2), "repeated_paragraphs_characters"),
        (page(8).replace(" of ", " of extraordinarily unimaginable "), "top_2_gram"),
        (page(6).replace("The", "The cheerful fisherman"), "top_3_gram"),
    ],
)
def test_gophers_rules(text: str, rule: str) -> None:
    assert judge(text, ["gopher"]).rule == (f"gopher_{rule}" if rule else "")


def test_stop_words_are_asked_of_english_alone() -> None:
    german = page().replace("The", "Das").replace(" of ", " von ")
    assert judge(german, ["gopher"], english=True).rule == "gopher_stop_words"
    assert judge(german, ["gopher"], english=False).rule == ""


def test_a_long_phrase_that_comes_again_and_again_is_repetition() -> None:
    draw = random.Random(2)
    phrase = "for more about this please write to our friendly office"
    text = " ".join(f"{sentence(draw, 15)} {phrase}" for _ in range(12))
    assert judge(text, ["gopher"]).rule.startswith("gopher_repeated_")
    assert judge(text.replace(phrase, ""), ["gopher"]).rule == ""


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), st.integers(2, 6))
def test_repeated_characters_are_those_of_a_plain_loop(words: list[str], n: int) -> None:
    grams = [words[start : start + n] for start in range(len(words) - n + 1)]
    covered = {place for start, gram in enumerate(grams) if gram in grams[:start] for place in range(start, start + n)}
    assert repeated_characters(words, n) == sum(len(words[place]) for place in covered)


BAD_LINES = {
    "c4_line_end": ["Contact us", "Read more ...", "It goes on and on..."],
    "c4_line_words": ["Click here.", "Yes!"],
    "c4_line_javascript": ["Please turn JavaScript on to see this page."],
    "c4_line_policy": ["See our Privacy Policy for more.", "This page uses cookies, as all do."],
}


def test_c4_takes_lines_out_and_names_the_rule() -> None:
    bad = [(rule, line) for rule, lines in BAD_LINES.items() for line in lines]
    mixed = [*LINES, *(line for _, line in bad)]
    random.Random(3).shuffle(mixed)
    verdict = judge("\n".join(mixed), ["c4"])
    assert verdict.rule == ""
    assert sorted(verdict.removed) == sorted(bad)
    assert verdict.text == "\n".join(line for line in mixed if line in LINES)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (page() + "\nLorem ipsum dolor sit amet, of course.", "c4_lorem_ipsum"),
        (page() + "\nfunction f() {", "c4_curly_bracket"),
        ("\n".join(LINES[:4]), "c4_sentences"),
        ("\n".join(LINES[:5]), ""),
        (" ".join(LINES[:5]), ""),  # several sentences a line
        ("\n".join(line[:-1] for line in LINES), "c4_sentences"),
        (page() + ' He said: "Go on!"', ""),
    ],
)
def test_c4s_rules_for_whole_texts(text: str, rule: str) -> None:
    assert judge(text, ["c4"]).rule == rule


def test_c4_takes_citation_marks_out() -> None:
    cited = page().replace(".", "[12][citation needed].")
    assert judge(cited, ["c4"]).text == page()


def test_the_sets_follow_one_another_on_what_is_left() -> None:
    """Menus keep a page from Gopher's rules until C4's have taken them out."""
    text = "\n".join([*LINES, *["Menu 1 2 3 4 5 6 7"] * 20])
    assert judge(text, ["gopher", "c4"]).rule == "gopher_alphabetic_words"
    verdict = judge(text, ["c4", "gopher"])
    assert (verdict.text, verdict.rule, len(verdict.removed)) == (page(), "", 20)
