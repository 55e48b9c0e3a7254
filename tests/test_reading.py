"""Encoders with a head in use: the best of all spans of all windows, the text's own characters, classes."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import config, encoded, model, reader, sentences, tokenizer
from torch.optim import AdamW
from two_hands import BERT

from lightning_modules.batching import make_batch, pad
from lightning_modules.interop.huggingface import to_hugging_face
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import new_model
from lightning_modules.reading import Span, answer_spans, best_spans, best_threshold, class_probabilities
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.windows import CONTEXT, context_begin, cut_windows, tokens_before

EOS = 2


def ignore(count: int) -> None:
    pass


def sources() -> list[tuple[list[int], int]]:
    """Some that fit a window of 16 and some that do not, with questions of 0 to 12 tokens; one without a context."""
    ids = encoded(sentences()[:24])
    found = [(ids[n] + ids[n + 1] if n % 2 else ids[n][:9], n % 13) for n in range(20)]
    return [*((source, min(context, len(source) - 1)) for source, context in found), (ids[3][:5], 5), ([], 0)]


def by_trying(made: SpanReader, ids: list[int], context: int, longest: int, most: int) -> Span:
    """Each window by itself, each pair of its columns."""
    windows, best, null = cut_windows(len(ids), context, longest), Span(), (float("inf"), 0.0)
    for begin in windows.begins:
        row = [*ids[: windows.question], *ids[begin : windows.end(begin)], EOS]
        first_S, last_S = made(torch.tensor([row]))[0].tolist()
        share = sum(np.exp(first_S)) * sum(np.exp(last_S))
        null = min(null, (first_S[-1] + last_S[-1], np.exp(first_S[-1] + last_S[-1]) / share))
        columns = range(windows.question, len(row) - 1)
        for first, last in product(columns, columns):
            score, shift = first_S[first] + last_S[last], begin - windows.question
            if first <= last < first + most and score > best.score:
                best = Span(first + shift, last + shift, score, np.exp(score) / share)
    return best._replace(null=null[0], null_probability=null[1])


@pytest.mark.parametrize("most", [1, 4, 30])
def test_the_best_span_is_the_best_of_all_windows_and_pairs_of_columns(most: int) -> None:
    made = reader(positions="learned")
    with torch.inference_mode():
        wanted = [by_trying(made, ids, context, 16, most) for ids, context in sources()]
    counts: list[int] = []
    for batch_tokens in (1, 64, 4096):
        found = best_spans(made, sources(), 16, most, batch_tokens, counts.append)
        for one, other in zip(found, wanted, strict=True):
            assert one[:2] == other[:2]
            assert one[2:] == pytest.approx(other[2:], rel=1e-3)
    assert sum(counts) == 3 * len(wanted)
    assert wanted[-1].score == float("-inf")  # nothing to point at
    assert len({(span.first, span.last) for span in wanted}) > 5
    assert any(span.first > 15 for span in wanted)
    assert not best_spans(made, [], 16, most, 64, ignore)


def lengths_read(module: torch.nn.Module) -> list[int]:
    """Gathers how many columns each batch has that `module` reads from now on."""
    found: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape[1]))
    return found


def test_what_is_longest_is_read_first() -> None:
    """So that padding is little, and memory that does not suffice is found out at once."""
    made, naming = reader(), Classifier(model(architecture="encoder"), ["no", "yes"]).eval()
    spans, classes = lengths_read(made), lengths_read(naming)
    best_spans(made, sources(), 40, 5, 100, ignore)
    rows = [[*ids, EOS] for ids in encoded(sentences()[:30])]
    class_probabilities(naming, rows, 100, ignore)
    for read in (spans, classes):
        assert len(set(read)) > 3
        assert read == sorted(read, reverse=True)
    assert classes[0] == max(map(len, rows))


def test_scores_are_those_of_hugging_faces_class_with_the_same_weights() -> None:
    from transformers import BertForQuestionAnswering

    made = SpanReader(model(**BERT, token_types=2))
    torch.nn.init.normal_(made.ends.weight)
    masked = to_hugging_face(made.encoder)
    theirs = BertForQuestionAnswering(masked.config).eval()
    theirs.bert.load_state_dict(masked.bert.state_dict())
    theirs.qa_outputs.load_state_dict(made.ends.state_dict())
    for _, source in enumerate(encoded(sentences()[:5])):
        ids = torch.tensor([[*source, EOS, 0, 0]])
        real = ids != 0
        with torch.inference_mode():
            ours, answer = made(ids, real), theirs(input_ids=ids, attention_mask=real.long())
            both = torch.stack([answer.start_logits, answer.end_logits], dim=1)
            torch.testing.assert_close(ours[..., real[0]], both[..., real[0]], atol=1e-4, rtol=0)
            (span,) = best_spans(made, [(source, 0)], 128, 128, 1000, ignore)
            first, last = answer.start_logits[0], answer.end_logits[0]
            pairs = {(a, b): first[a] + last[b] for a in range(len(source)) for b in range(a, len(source))}
            assert (span.first, span.last) == max(pairs, key=lambda pair: float(pairs[pair]))
            assert span.score - span.null == pytest.approx(
                float(max(pairs.values()) - first[len(source)] - last[len(source)]), abs=1e-3
            )


@settings(max_examples=30)
@given(texts=st.lists(st.text(alphabet='aé漢🙂 ,.\n"(e\u0301', max_size=40), max_size=4), longest=st.integers(6, 20))
def test_an_answer_is_a_stretch_of_the_text_itself(texts: list[str], longest: int) -> None:
    made = reader(positions="learned", encoder_layers=1, d_model=8, d_ff=8)
    texts = [f"question: {text[:9]}{CONTEXT}{text}" for text in texts]
    for text, answer in zip(texts, answer_spans(made, tokenizer(), texts, longest, 5, None, 100, ignore), strict=True):
        assert text[answer.begin : answer.end] == answer.text == answer.text.strip()
        assert 0 <= answer.probability <= 1
        if answer.text:
            assert answer.begin >= text.index(CONTEXT) + len(CONTEXT) - 1
            assert len(encoded([answer.text])[0]) <= 2 * 5 + 1


def test_white_space_alone_is_no_answer() -> None:
    made, text = reader(positions="learned"), f"question: who?{CONTEXT}\n \n"
    found = tokenizer().encode(text, add_special_tokens=False)
    (span,) = best_spans(made, [(found.ids, tokens_before(found.offsets, context_begin(text)))], 30, 6, 500, ignore)
    assert text[found.offsets[span.first][0] : found.offsets[span.last][1]].isspace()
    (answer,) = answer_spans(made, tokenizer(), [text], 30, 6, None, 500, ignore)
    assert (answer.text, answer.begin, answer.end) == ("", 0, 0)
    assert answer.margin == pytest.approx(span.score - span.null)
    assert answer.probability == pytest.approx(span.null_probability)
    assert answer.probability != pytest.approx(span.probability)


def test_with_a_threshold_an_answer_is_given_where_its_margin_is_greater() -> None:
    made, texts = reader(positions="learned"), [f"question: who?{CONTEXT}{text}" for text in sentences()[:20]]
    always = answer_spans(made, tokenizer(), texts, 30, 6, None, 500, ignore)
    margins = sorted(answer.margin for answer in always)
    for threshold in (margins[0] - 1, margins[7], margins[-1]):
        for answer, first in zip(
            answer_spans(made, tokenizer(), texts, 30, 6, threshold, 500, ignore), always, strict=True
        ):
            assert answer.margin == pytest.approx(first.margin)
            assert answer.text == (first.text if first.margin > threshold else "")
    assert all(answer.text for answer in always)


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.sampled_from([(True, False), (False, True), (False, False)])), min_size=1)
)
def test_the_threshold_answers_as_many_rightly_as_any_other(rows: list[tuple[int, tuple[bool, bool]]]) -> None:
    margin_N = np.array([float(margin) for margin, _ in rows])
    right_N, none_N = (np.array([kinds[n] for _, kinds in rows]) for n in (0, 1))

    def rightly(threshold: float) -> int:
        return int(np.where(margin_N > threshold, right_N, none_N).sum())

    assert rightly(best_threshold(margin_N, right_N, none_N)) == max(rightly(t / 2) for t in range(-12, 12))


def learned(made: Any, batch: Any, steps: int) -> None:
    optimizer = AdamW([weight for weight in made.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss, predictions = batch_loss(made, batch, 0.0)
        (loss / predictions).backward()
        optimizer.step()
    made.eval()


def test_a_class_is_the_one_with_the_greatest_probability_of_each_text_by_itself() -> None:
    torch.manual_seed(0)
    made = Classifier(model(architecture="encoder", positions="relative"), ["no", "perhaps", "yes"]).eval()
    torch.nn.init.normal_(made.classes.weight)
    rows, counts = [[*ids, EOS] for ids in encoded(sentences()[:30])], list[int]()
    with torch.inference_mode():
        wanted = torch.cat([made(torch.tensor([row])).softmax(-1) for row in rows])
    for batch_tokens in (1, 100, 5000):
        found = class_probabilities(made, rows, batch_tokens, counts.append)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert sum(counts) == 3 * len(rows)
    assert len(set(wanted.argmax(-1).tolist())) > 1


def test_classes_are_learned_by_the_loss(tmp_path: Path) -> None:
    made = Classifier(new_model(config(architecture="encoder"), seed=0), "abc")  # type: ignore[arg-type]
    rows = [[*ids[:20], EOS] for ids in encoded(sentences()[:12])]
    learned(made, make_batch(pad(rows, 0), np.arange(12)[:, None] % 3, made.config, 12), 60)
    assert class_probabilities(made, rows, 100, ignore).argmax(-1).tolist() == [n % 3 for n in range(12)]
