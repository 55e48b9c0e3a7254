"""CTranslate2 as the engine: our own answers with float32 weights, most of them with 8 bits, refusals in one line."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import tiny
import torch
from searching import beams_without_end, sources, tensors

from lightning_modules.decoding import Decoding, Hypothesis, decode
from lightning_modules.errors import PipelineError
from lightning_modules.interop.ctranslate2 import main
from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine
from lightning_modules.model_folder import Model, save_model

LIMITS = {"max_source_tokens": 61, "max_target_tokens": 20}
DECODER = {"architecture": "decoder", "positions": "rotary"}
TEXTS = list(tiny.sentences()[:500])
TIE = 1e-5  # nats that rounding may decide


def folder_of(root: Path, made: Model, limits: dict[str, int]) -> Path:
    (root / "model").mkdir()
    save_model(root / "model", made, tiny.write_tokenizer(root / "tokenizer"), limits)
    return root / "model"


def searched(made: Any, decoding: Decoding, count: int = 500) -> list[list[Hypothesis]]:
    texts, found = sources(count), list[list[Hypothesis]]()
    for start in range(0, count, 50):
        found += decode(made, *tensors(texts[start : start + 50], made), decoding)
    return found


def by_ourselves(made: Any, decoding: Decoding, count: int = 500) -> list[str]:
    """What our own search writes for so many of TEXTS."""
    written = tiny.tokenizer().decode_batch([answers[0].ids for answers in searched(made, decoding, count)])
    return [text.strip() for text in written]


@pytest.mark.parametrize("changes", [{}, DECODER], ids=["encoder_decoder", "decoder"])
def test_five_hundred_sentences_come_out_as_from_ourselves(tmp_path: Path, changes: dict[str, Any]) -> None:
    """But those where beams would end at once, which CTranslate2 lets no decoder's do."""
    made, counts = tiny.lively(**changes), []
    engine = CTranslate2Engine(folder_of(tmp_path, made, LIMITS), "float32", threads=1)
    assert list(tmp_path.rglob("*.bin")) == []
    assert engine.generate(TEXTS, done=counts.append) == by_ourselves(made, Decoding(20))
    assert sum(counts) == len(TEXTS)
    at_first = searched(made, Decoding(1, beams=5, answers=5))
    compared = [n for n in range(500) if not changes or all(text.ids for text in at_first[n])]
    assert len(compared) > 200
    for penalty in (0.0, 1.0):
        decoding = Decoding(20, beams=5, length_penalty=penalty, stop="full")
        ours, theirs = by_ourselves(made, decoding), engine.generate(TEXTS, decoding)
        different = [number for number in compared if ours[number] != theirs[number]]
        for number in different:
            assert beams_without_end(made, sources(500)[number], 5, 20, penalty)[1] < TIE
        assert len(different) <= len(compared) // 100
        assert len(set(ours)) > 100
    assert engine.generate([]) == []


def test_drawing_and_bans_are_passed_on(tmp_path: Path) -> None:
    made = tiny.lively(**DECODER)
    engine = CTranslate2Engine(folder_of(tmp_path, made, LIMITS), "float32", threads=1)
    decoding, greedily = Decoding(20, no_repeat_ngram=2), engine.generate(TEXTS[:60])
    assert engine.generate(TEXTS[:60], decoding) == by_ourselves(made, decoding, 60) != greedily
    assert engine.generate(TEXTS[:60], Decoding(20, sample=True, top_k=1)) == greedily
    assert engine.generate(TEXTS[:60], Decoding(20, sample=True)) != greedily
    with pytest.raises(PipelineError, match="min_p is unknown to CTranslate2"):
        engine.generate(TEXTS[:1], Decoding(20, sample=True, min_p=0.1))


DRAW = """
import json, sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
import tiny
from lightning_modules.decoding import Decoding
from lightning_modules.interop.ctranslate2 import main
from lightning_modules.interop.ctranslate2_engine import CTranslate2Engine
engine = CTranslate2Engine(Path(sys.argv[1]), "float32", threads=3)
decoding = Decoding(20, sample=True, temperature=0.7, seed=7)
print(json.dumps(engine.generate(list(tiny.sentences()[:120]), decoding)))
"""


@pytest.mark.parametrize("changes", [{}, DECODER], ids=["encoder_decoder", "decoder"])
def test_the_seed_decides_what_is_drawn_in_this_and_in_another_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder, texts = folder_of(tmp_path, tiny.lively(**changes), LIMITS), TEXTS[:120]
    engine, seventh = (
        CTranslate2Engine(folder, "float32", threads=3),
        Decoding(20, sample=True, temperature=0.7, seed=7),
    )
    drawn = engine.generate(texts, seventh)
    assert len(set(drawn)) > 60
    assert engine.generate(texts, seventh) == drawn
    assert engine.generate(texts, replace(seventh, seed=8)) != drawn
    assert CTranslate2Engine(folder, "float32", threads=1).generate(texts, seventh) == drawn
    command, repository = [sys.executable, "-c", DRAW, str(folder)], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.rstrip().split("\n")[-1]) == drawn


@pytest.mark.parametrize(
    ("made", "limits", "said"),
    [
        (lambda: tiny.model(), {}, "no fine-tuned model"),
        (lambda: tiny.reader(), LIMITS, "holds an encoder"),
        (lambda: tiny.model(), {"max_source_tokens": 61}, r"config\.json: limits has no .max_target_tokens"),
        (lambda: tiny.model(positions="alibi"), LIMITS, "no counterpart in CTranslate2: positions"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(tmp_path: Path, made: Any, limits: dict[str, int], said: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(PipelineError, match=said) as refusal:
        CTranslate2Engine(folder_of(tmp_path, made(), limits))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("changes", [{}, DECODER], ids=["encoder_decoder", "decoder"])
def test_the_command_says_by_which_options_anyone_writes_the_same(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of(tmp_path, tiny.lively(**changes), LIMITS), tmp_path / "out"
    about = json.loads((folder / "config.json").read_text()) | {"decoding": {"beams": 4, "length_penalty": 0.5}}
    (folder / "config.json").write_text(json.dumps(about))
    assert main([str(folder), str(out)]) == 0
    said = capsys.readouterr().out.splitlines()[-1].partition("to write as the pipeline does: ")[2]
    call, _, told = said.removesuffix(")").partition("(…, ")
    options = {name: ast.literal_eval(value) for name, value in (one.split("=") for one in told.split(", "))}
    assert (options["beam_size"], options["length_penalty"]) == (4, 0.5)
    opened = (ctranslate2.Generator if changes else ctranslate2.Translator)(str(out), device="cpu", inter_threads=1)
    begins = ["</s>", "<s>"] if changes else ["</s>"]
    tokens = [[*tiny.tokenizer().encode(text).tokens[:60], *begins] for text in TEXTS[:40]]
    results = getattr(opened, call)(tokens, **options)
    ids = [result.sequences_ids[0] for result in results] if changes else None
    names = tiny.tokenizer().get_vocab()
    ids = ids or [[names[token] for token in result.hypotheses[0]] for result in results]
    written = [text.strip() for text in tiny.tokenizer().decode_batch(ids)]
    assert written == CTranslate2Engine(folder, "float32", threads=1).generate(TEXTS[:40])
    assert written != by_ourselves(tiny.lively(**changes), Decoding(20), 40)
