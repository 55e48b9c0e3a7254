"""New texts against known ones: a model tells strange texts from familiar ones, and champions answer both."""

import json
import random
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import registered
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow_tools import client, history, runs
from stage_runs import set_params

from lightning_modules.errors import PipelineError
from lightning_modules.loss import batch_loss
from lightning_modules.model_folder import save_model
from lightning_modules.text_rows import TextRows
from lightning_modules.text_to_text import TextToText
from stages.drift import main, measure
from stages.drift_known import Known, held_out, load_known, remember, whole_words
from stages.drift_models import bits_per_byte
from stages.drift_report import findings, read_looks, rows, table
from stages.drift_words import MEASURES, coverage, word_counts
from stages.params import Params, load_params
from stages.register import register_all
from stages.scores import score_task
from stages.splits import SPLITS, digest
from stages.tasks import TASKS
from stages.tokenizer_kinds import KINDS
from stages.tracking_store import tracking_uri

TASK = registered.TASK
TRAIN, TEST = 300, 60  # sentences, the first to be trained on


def write_prepared(root: Path, purpose: str, splits: dict[str, Iterable[dict[str, str]]]) -> None:
    """Records as prepare leaves them: sorted by the hash of what is read, which is their id."""
    folder = root / "data/prepared" / purpose
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        keyed = [{"id": digest(next(iter(one.values()))), **one} for one in splits.get(split, ())]
        keyed.sort(key=lambda one: one["id"])
        columns = list(keyed[0]) if keyed else ["id", "text"]
        table = pa.table({c: pa.array([one[c] for one in keyed], pa.string()) for c in columns})
        pq.write_table(table, folder / f"{split}.parquet")


def write_texts(root: Path, train: Sequence[str], test: Sequence[str]) -> None:
    write_prepared(root, "pretraining", {"train": ({"text": t} for t in train), "test": ({"text": t} for t in test)})


def shuffled(text: str) -> str:
    """The same letters in another order, word by word."""
    draw = random.Random(text)
    return " ".join("".join(draw.sample(word, len(word))) for word in text.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a decoder that has learnt a little English from sentences()[:TRAIN]."""
    root = tmp_path_factory.mktemp("trained")
    section = {"objective": "causal_lm", "packing": "joined", "batch_size": 2}  # the texts are to fill ten batches
    set_params(root, only=TASK, model={"architecture": "decoder"}, pretrain=section)
    model = tiny.model(1, architecture="decoder", d_model=64, d_ff=128).train()
    store = tiny.write_store(root / "tokens", tiny.encoded(tiny.sentences()[:TRAIN]))
    objective = tiny.rows_split(root / "unused", architecture="decoder", objective="causal_lm").objective
    text = TextRows(store, model.config, objective, 32, 16, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        nats, count = batch_loss(model, text.training_batch(step, 0, 1), 0.0)
        optimizer.zero_grad()
        (nats / count).backward()
        optimizer.step()
    (root / "models/pretrained").mkdir(parents=True)
    save_model(root / "models/pretrained", model, tiny.write_tokenizer(root / "tokenizer"), {})
    return root


def test_strange_texts_are_told_from_familiar_ones(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    train, familiar = tiny.sentences()[:TRAIN], tiny.sentences()[TRAIN : TRAIN + TEST]
    more = tiny.sentences()[TRAIN + TEST : TRAIN + 2 * TEST]
    write_texts(trained, train, familiar)
    write_prepared(trained, TASK, {})
    assert remember(Path("data/prepared")) == TRAIN + TEST
    params = load_params()

    write_texts(trained, train, [*familiar, *more])
    same = measure(params, trained)
    write_texts(trained, train, [*familiar, *map(shuffled, more)])
    other = measure(params, trained)

    for look in (same, other):
        assert look["texts"]["known"]["texts"] == look["texts"]["new"]["texts"] == TEST
    assert same["texts"]["known"] == other["texts"]["known"]
    strange, alike = other["texts"]["new"], same["texts"]["new"]
    for measure_name in ("bits_per_byte", "fertility", "continued_words", "oov_words"):
        assert strange[measure_name]["low"] > alike[measure_name]["high"], measure_name
    strange_ones = {row.key for row in rows(other) if row.worse}
    assert {"bits_per_byte", "fertility", "continued_words", "oov_words"} <= strange_ones
    assert not {"bits_per_byte", "fertility"} & {row.key for row in rows(same) if row.worse}
    assert any("bits per byte" in line for line in findings({**other, "look": 1}))
    assert "does not answer" in other["not_measured"]["champions"]
    assert "| bits per byte |" in table({**other, "look": 1, "time": ""})


def test_bits_per_byte_are_those_of_the_stage_and_of_few_texts_none(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.evaluate_pretraining import evaluate_pretraining
    from stages.tokenize import tokenize

    params = load_params(trained / "params.yaml")
    texts = tiny.sentences()[TRAIN : TRAIN + TEST]
    write_texts(tmp_path, tiny.sentences()[:9], sorted(texts, key=digest))
    tokenize(tmp_path / "data/prepared", trained / "models/pretrained/tokenizer.json", tmp_path / "data/tokens", 1)
    (tmp_path / "models").symlink_to(trained / "models")
    with chdir(tmp_path):
        expected = evaluate_pretraining(params)["bits_per_byte"]
        found = bits_per_byte(params, sorted(texts, key=digest))
        assert {key: found[key] for key in expected} == expected
        look: dict[str, Any] = measure_of_new(params, known=texts, new=["Too short."])
    assert "do not fill a row of 32" in look["not_measured"]["bits per byte of new texts"]
    assert look["texts"]["new"]["words"] == 2


def measure_of_new(params: Params, known: Sequence[str], new: Sequence[str]) -> dict[str, Any]:
    root = Path.cwd()
    write_texts(root, tiny.sentences()[:TRAIN], known)
    write_prepared(root, TASK, {})
    remember(Path("data/prepared"))
    write_texts(root, tiny.sentences()[:TRAIN], [*known, *new])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        return measure(params, root)


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece", "word"])
def test_coverage_against_the_library_and_a_loop(kind: str) -> None:
    train, texts = tiny.sentences()[:200], [*tiny.sentences()[200:260], "Ünïcödé 漢字 zzzzxq हिन्दी में", ""]
    tokenizer = KINDS[kind].learn(lambda: iter([list(train)]), 600)
    seen = {word for text in train for word in whole_words(text)}
    counts = word_counts(texts, tokenizer, seen)
    for text, row in zip(texts, counts, strict=True):
        words = whole_words(text)
        pieces = [tokenizer.encode(word, add_special_tokens=False).tokens for word in words]
        assert row.tolist() == [
            len(words),
            sum(map(len, pieces)),
            sum(len(piece) > 1 for piece in pieces),
            sum(piece.count("<unk>") for piece in pieces),
            sum(word not in seen for word in words),
        ]
    found = coverage(texts, tokenizer, seen, 100, 1)
    everything = Counter(word for text in texts for word in whole_words(text))
    assert found["words"] == everything.total()
    unseen = sum(number for word, number in everything.items() if word not in seen)
    assert found["oov_words"]["score"] == pytest.approx(unseen / everything.total(), abs=1e-4)
    assert (found["unknown_tokens"]["score"] > 0) == (kind != "byte_bpe")
    assert (found["continued_words"]["score"] > 0) == (kind != "word")


def test_a_word_holds_its_vowel_signs() -> None:
    assert whole_words("हिन्दी में, cafe\u0301_1 “漢字”\xa0don't ❤️") == ["हिन्दी", "में", "cafe\u0301_1", "漢字", "don", "t"]
    counts = word_counts(["की का", "की"], tiny.tokenizer(), {"की"})
    assert counts[:, [0, 4]].tolist() == [[2, 1], [1, 0]]


def test_words_kept_by_an_older_version_are_not_compared(tmp_path: Path) -> None:
    write_texts(tmp_path, ["की one"], ["two"])
    prepared, known = tmp_path / "data/prepared", tmp_path / "known"
    remember(prepared, known)
    assert load_known(known).words == {"की", "one"}
    next(known.glob("*.parquet")).rename(known / "words.parquet")
    assert load_known(known).words == frozenset()
    assert len(load_known(known).ids["pretraining"]) == 2


def test_texts_without_words_and_a_training_that_nobody_kept() -> None:
    assert coverage(["…", ""], tiny.tokenizer(), {"a"}, 100, 1) == {"words": 0}
    assert coverage([], tiny.tokenizer(), {"a"}, 100, 1) == {"words": 0}
    assert set(coverage(["a word"], tiny.tokenizer(), (), 100, 1)) == {"words", *MEASURES} - {"oov_words"}


@settings(max_examples=15)
@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40), min_size=1), st.integers(0, 5))
def test_what_is_new_is_what_was_in_no_split_before(
    tmp_path_factory: pytest.TempPathFactory, before: set[int], after: set[int], most: int
) -> None:
    root = tmp_path_factory.mktemp("ids")
    parts = {split: [{"text": f"text {n}"} for n in sorted(before) if n % 3 == i] for i, split in enumerate(SPLITS)}
    write_prepared(root, "pretraining", parts)
    assert remember(root / "data/prepared", root / "known") == len(before)
    write_texts(root, [], [f"text {n}" for n in after])
    groups = held_out(root / "data/prepared", "pretraining", load_known(root / "known"), most)
    for found, numbers in ((groups.new, after - before), (groups.known, after & before)):
        expected = sorted((f"text {n}" for n in numbers), key=digest)
        assert [record["text"] for record in found] == (expected[:most] if most else expected)


def test_where_nothing_was_kept_nothing_is_new(tmp_path: Path) -> None:
    write_texts(tmp_path, ["one"], ["two", "three"])
    groups = held_out(tmp_path / "data/prepared", "pretraining", load_known(tmp_path / "nowhere"), 0)
    assert (groups.new, len(groups.known)) == ([], 2)
    assert load_known(tmp_path / "nowhere") == Known()


def test_champions_answer_and_mlflow_shows_the_looks_as_curves(study: Path) -> None:
    registered.write_model(study, 1)
    registered.write_results(study, right=1.0)
    params = registered.params()
    quick = params.promotion.model_copy(update={"check_export": False})
    register_all(params.model_copy(update={"promotion": quick}), study)
    set_params(study, only=TASK)  # the commands read it; the experiment is the same in both looks
    records = registered.records()
    known, new = records[:20], records[20:44]
    pairs = {"test": [{"source": one["source"], "target": one["target"]} for one in known]}
    write_texts(study, ["a text"], ["another text"])
    write_prepared(study, TASK, pairs)
    remember(Path("data/prepared"))
    pairs["test"] += [{"source": one["source"], "target": one["target"]} for one in new]
    write_prepared(study, TASK, pairs)

    for _ in range(2):
        main(Namespace(remember=False))
    looks = json.loads((study / "reports/drift.json").read_text())["looks"]
    assert [look["look"] for look in looks] == [1, 2]
    assert set(looks[0]["not_measured"]) == {"models/pretrained"}
    champion = looks[1]["champions"][TASK]
    assert champion["version"] == "1"
    told = load_params()
    for group, part in (("known", known), ("new", new)):
        ordered = sorted(part, key=lambda one: digest(one["source"]))
        sources, targets = ([one[side] for one in ordered] for side in ("source", "target"))
        answers = TextToText.load(study / "models" / TASK).generate(sources)
        chance = told.evaluate.bootstrap_samples, told.seed
        scored = score_task(TASKS[TASK].metrics, targets, {"champion": answers}, *chance)["metrics"]
        assert champion[group] == {"records": len(part)} | {name: one["champion"] for name, one in scored.items()}

    uri = tracking_uri(study)
    run = runs(uri, told.tracking.experiment)["drift"]
    primary = TASKS[TASK].primary
    score = champion["new"][primary]["score"]
    assert history(uri, run.info.run_id, f"{TASK}_{primary}/new") == [(1, score), (2, score)]
    kept = {artifact.path for artifact in client(uri).list_artifacts(run.info.run_id)}
    assert {"drift.json", "drift.png"} <= kept
    assert (study / "reports/drift.png").read_bytes().startswith(b"\x89PNG")


def test_a_task_without_a_champion_says_so(study: Path) -> None:
    write_texts(study, ["a text"], ["another text"])
    write_prepared(study, TASK, {"test": [{"source": "one", "target": "two"}]})
    look = measure(registered.params(), study)
    why = look["not_measured"]
    assert why.pop("models/pretrained").startswith("it is not there")
    assert why == {f"champion of {TASK}": f"{registered.MODEL} has no champion yet"}
    assert look["champions"] == {}


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"prepared/pretraining is not there: run the prepare stage first$"):
        remember(tmp_path / "prepared", tmp_path / "known")
    assert not (tmp_path / "known").exists()
    write_texts(tmp_path, ["one"], ["two"])
    prepared = tmp_path / "data/prepared"
    remember(prepared, tmp_path / "known")
    (tmp_path / "known/pretraining.npy").write_bytes(b"not an array")
    with pytest.raises(PipelineError, match=r"known cannot be read .*: remove it"):
        load_known(tmp_path / "known")
    (prepared / "pretraining/test.parquet").write_bytes(b"no parquet")
    with pytest.raises(PipelineError, match=r"test.parquet cannot be read .*: run the prepare stage again$"):
        held_out(prepared, "pretraining", Known(), 0)
    (tmp_path / "drift.json").write_text("{")
    with pytest.raises(PipelineError, match=r"drift.json cannot be read .*: remove it"):
        read_looks(tmp_path / "drift.json")


def test_what_is_drawn_from_few_shows_nothing_surely() -> None:
    one, two = ({"score": value, "low": value, "high": value} for value in (1.0, 2.0))

    def look(batches: int, texts: int, records: int) -> dict[str, Any]:
        known, new = (
            {"texts": texts, "bits_per_byte": score | {"batches": batches}, "oov_words": score} for score in (one, two)
        )
        scores = {"known": {"records": 60, "chrf": two}, "new": {"records": records, "chrf": one}}
        groups = {"known": known | {"texts": 60}, "new": new}
        champions = {"translation": {"version": "1", **scores}}
        return {"look": 1, "time": "", "texts": groups, "champions": champions, "not_measured": {}}

    everything = {"bits_per_byte", "oov_words", "translation_chrf"}
    for counts, unsure in (
        ((10, 10, 10), set()),
        ((1, 10, 10), {"bits_per_byte"}),
        ((10, 9, 10), {"oov_words"}),
        ((10, 10, 9), {"translation_chrf"}),
    ):
        found = look(*counts)
        assert {row.key for row in rows(found) if row.worse} == everything - unsure
        assert len(findings(found)) == 3 - len(unsure)
    assert table(look(1, 10, 10)).endswith("or records, which show nothing surely: bits per byte")
