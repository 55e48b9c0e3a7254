"""Windows over long sources, and places in characters and tokens, against their plain definitions."""

from hypothesis import given
from hypothesis import strategies as st
from tiny import sentences, tokenizer

from lightning_modules.windows import context_begin, covering, cut_windows, kept, tokens_before
from stages.tasks import TASKS
from stages.tokenize import place

offsets_of = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12).map(
    lambda steps: [
        (begin, begin + width) for begin, width in zip(_sums(steps), (width for _, width in steps), strict=True)
    ]
)


def _sums(steps: list[tuple[int, int]]) -> list[int]:
    """Where tokens begin that are so wide and have so wide gaps before them."""
    begins, end = [], 0
    for gap, width in steps:
        begins.append(end + gap)
        end += gap + width
    return begins


@given(tokens=st.integers(0, 60), context=st.integers(0, 60), longest=st.integers(2, 40))
def test_windows_are_no_longer_than_said_and_hold_every_stretch_of_half_their_room(
    tokens: int, context: int, longest: int
) -> None:
    context = min(context, tokens)
    windows = cut_windows(tokens, context, longest)
    parts = [range(begin, windows.end(begin)) for begin in windows.begins]
    assert len(set(windows.begins)) == len(parts) >= 1
    assert all(windows.question + len(part) + 1 <= longest for part in parts)
    assert all(windows.null(part.start) == windows.question + len(part) for part in parts)
    assert sorted({token for part in parts for token in part}) == list(range(context, tokens))
    for width in range(1, max(windows.room // 2, 1) + 1):
        for begin in range(context, tokens - width + 1):
            assert any(begin in part and begin + width - 1 in part for part in parts), (begin, width)
    if tokens < longest:
        assert (len(parts), windows.question) == (1, context)
    else:
        assert windows.question == min(context, (longest - 1) // 2)
        assert all(len(part) == windows.room for part in parts[:-1])


@given(offsets=offsets_of, begin=st.integers(0, 40), width=st.integers(1, 10))
def test_tokens_at_characters_are_those_that_share_one_with_them(
    offsets: list[tuple[int, int]], begin: int, width: int
) -> None:
    assert tokens_before(offsets, begin) == sum(end <= begin for _, end in offsets)
    inside = [n for n, (first, end) in enumerate(offsets) if end > begin and first < begin + width]
    first, last = covering(offsets, begin, begin + width)
    assert list(range(first, last + 1)) == inside


def test_an_answer_is_found_where_the_tokenizer_puts_its_characters() -> None:
    text = " ".join(sentences()[:20])
    found = tokenizer().encode(text, add_special_tokens=False)
    for word in ("argument", "the", "é" if "é" in text else "a"):
        begin = text.index(word)
        first, last = covering(found.offsets, begin, begin + len(word))
        assert word in text[found.offsets[first][0] : found.offsets[last][1]]
        assert word in tokenizer().decode(found.ids[first : last + 1])
        assert word not in tokenizer().decode(found.ids[first + 1 : last + 1])


def test_the_context_begins_behind_its_mark_as_the_task_writes_it() -> None:
    record = {"question": "What is it?", "context": "It is a context: so.", "answer": "so"}
    source = TASKS["question_answering"].source_text(record)
    assert source[context_begin(source) :] == record["context"]
    assert context_begin("no mark here") == 0


WORDS = st.lists(st.sampled_from(["context:", "context", ":", "it", "Context:", "question:"]), max_size=6).map(" ".join)


@given(question=WORDS, context=WORDS, answer=st.integers(0, 40))
def test_no_question_moves_the_place_where_the_context_begins(question: str, context: str, answer: int) -> None:
    source = TASKS["question_answering"].source_text({"question": question, "context": context, "answer": ""})
    begin = context_begin(source)
    assert source[begin:] == context
    assert source[:begin].split("question: ", 1)[1].replace(" ", "") == f"{question} context:".replace(" ", "")
    start = min(answer, len(context))
    offsets = [(n, n + 1) for n in range(len(source))]  # a character a token
    said = context[start : start + 3]
    if said:
        assert place(source, said, str(start), offsets) == [begin, begin + start, begin + start + len(said) - 1]
    if "context:" not in question:
        assert source == f"question: {question} context: {context}"


@given(ids=st.lists(st.integers(0, 9), max_size=9), longest=st.integers(1, 12))
def test_of_a_long_text_the_beginning_or_the_end_is_kept(ids: list[int], longest: int) -> None:
    room = longest - 1
    assert ids[kept(len(ids), longest)] == ids[:room]
    assert ids[kept(len(ids), longest, keep_end=True)] == (ids[-room:] if room else [])
