"""Exported folders: what others load is what was trained; nothing is left of what cannot be vouched for."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from transformers import AutoTokenizer
from two_hands import BERT, GPT2, LEARNED, LLAMA, RELATIVE, model_folder, names

from lightning_modules.errors import PipelineError
from lightning_modules.interop.huggingface import export, import_model, main, to_hugging_face
from lightning_modules.model_folder import load_tokenizer
from lightning_modules.text_to_text import TextToText

LIMITS = {"max_source_tokens": 20, "max_target_tokens": 12}
TEXTS = [
    "Return a new list.",
    "If the key is not found, </s> return the default value that was given, else raise an error.",
    "The optional argument says how many <mask> characters are shown in the middle of each line of the table.",
    "Yes",
]
REPOSITORY = Path(__file__).parents[1]


@torch.inference_mode()
def greedy(model: Any, source: list[int], max_tokens: int) -> list[int]:
    """Our own decoding step by step, for one source."""
    state = model.begin(torch.tensor([source]))
    written: list[int] = []
    last = model.config.bos_id
    while len(written) < max_tokens:
        last = int(model.logits(model.step(torch.tensor([[last]]), state))[0, -1].argmax())
        if last == model.config.eos_id:
            break
        written.append(last)
    return written


def lively(seed: int = 0, **changes: Any) -> Any:
    """A random model that ends some of its texts, and writes different ones."""
    model = tiny.lively(seed, **changes)
    model.embedding.weight_VD.data[tiny.EOS] *= 1.3
    return model


@pytest.mark.parametrize(
    ("model_class", "changes"),
    [
        ("PegasusForConditionalGeneration", {}),
        ("MarianMTModel", {"norm": "post"}),
        ("BartForConditionalGeneration", LEARNED),
        ("T5ForConditionalGeneration", RELATIVE | {"scale_logits": True}),
        ("GPT2LMHeadModel", GPT2),
        ("LlamaForCausalLM", LLAMA | {"key_value_heads": 2}),
    ],
)
def test_others_load_the_folder_and_write_the_same_tokens(
    model_class: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = lively(**changes)
    folder = model_folder(tmp_path, ours, LIMITS)
    export(folder, tmp_path / "out")
    assert {"model.safetensors", "config.json", "generation_config.json", "README.md"} <= names(tmp_path / "out")
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= names(tmp_path / "out")
    decodes_alone = ours.config.architecture == "decoder"
    auto = transformers.AutoModelForCausalLM if decodes_alone else transformers.AutoModelForSeq2SeqLM
    theirs = auto.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == model_class
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")).__module__.startswith("transformers.models")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True)
    written = theirs.generate(**inputs)
    written = written[:, inputs["input_ids"].shape[1] if decodes_alone else 1 :]
    expected = []
    for text, row in zip(TEXTS, written.tolist(), strict=True):
        source = [*load_tokenizer(folder).encode(text).ids[: LIMITS["max_source_tokens"] - 1], tiny.EOS]
        expected.append(greedy(ours, source, LIMITS["max_target_tokens"]))
        ended = row.index(tiny.EOS) if tiny.EOS in row else len(row)
        assert row[:ended] == expected[-1]
    assert len({tuple(row) for row in expected}) > 1
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == [
        tiny.tokenizer().decode(ids) for ids in expected
    ]


def used(folder: Path, decoding: dict[str, Any]) -> None:
    """Writes how a task searches for its texts into the model folder's config.json, as fine-tuning does."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoding": decoding}))


def generated(folder: Path, texts: Sequence[str]) -> list[str]:
    """What others get who load the folder and call `generate`, as its README says."""
    prompts = json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    auto = transformers.AutoModelForCausalLM if prompts else transformers.AutoModelForSeq2SeqLM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
    written = auto.from_pretrained(folder).generate(**inputs)[:, inputs["input_ids"].shape[1] if prompts else 0 :]
    return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


ENDING_EARLY = {"beams": 3, "length_penalty": 0.0, "stop": "exact", "max_tokens": 9}


@pytest.mark.parametrize(
    ("changes", "decoding"),
    [
        ({}, {"beams": 4}),
        ({}, ENDING_EARLY),
        ({}, {"beams": 2, "stop": "full", "repetition_penalty": 2, "no_repeat_ngram": 2}),
        ({}, {"repetition_penalty": 1.5}),
        ({}, {"sample": True, "top_k": 1, "temperature": 2}),
        (LLAMA, {"beams": 4}),
        (LLAMA, ENDING_EARLY),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_generate_by_itself_writes_what_was_evaluated(
    changes: dict[str, Any], decoding: dict[str, Any], tmp_path: Path
) -> None:
    folder, texts = model_folder(tmp_path, lively(**changes), LIMITS), [*TEXTS, *tiny.sentences()[:20]]
    greedily = TextToText.load(folder).generate(texts)
    used(folder, decoding)
    export(folder, tmp_path / "out")
    evaluated = TextToText.load(folder).generate(texts)
    assert generated(tmp_path / "out", texts) == evaluated
    assert (evaluated == greedily) == ("sample" in decoding)  # drawing from one token is greedy


def test_drawing_is_passed_on_and_what_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder(tmp_path, lively(), LIMITS)
    greedily = TextToText.load(folder).generate(TEXTS)
    used(folder, {"sample": True, "temperature": 0.7, "answers": 3})
    export(folder, tmp_path / "out")
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.do_sample, found.temperature, found.top_k, found.top_p, found.min_p) == (True, 0.7, 0, 1.0, 0.0)
    torch.manual_seed(1)
    assert generated(tmp_path / "out", TEXTS) != greedily
    said, card = capsys.readouterr().out, (tmp_path / "out/README.md").read_text()
    for note in ("`generate` draws by PyTorch's seed: ", "the most probable of 3."):
        assert note in said
        assert note in card


def test_a_decoder_whose_repetition_is_restrained_is_exported_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path, lively(**LLAMA), LIMITS)
    used(folder, {"no_repeat_ngram": 2})
    export(folder, tmp_path / "out")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").no_repeat_ngram_size == 2
    assert "note: In `generate` the source counts as written" in capsys.readouterr().out


@pytest.mark.parametrize("keep_end", [False, True])
@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["encoder_decoder", "decoder"])
def test_a_long_source_is_cut_at_the_end_that_the_task_cuts(
    changes: dict[str, Any], keep_end: bool, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path, tiny.model(**changes), LIMITS | {"keep_end": keep_end})
    export(folder, tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, truncation=True)["input_ids"]
    ours = TextToText.load(folder)
    assert found == [[*row, *([1] if changes else [])] for row in ours.source_ids(TEXTS)]
    assert ours.cut > 1


def test_a_masked_language_model_reads_its_mask(tmp_path: Path) -> None:
    ours = tiny.model(**BERT, token_types=2)
    folder = model_folder(tmp_path, ours)
    (folder / "training.json").write_text(json.dumps({"steps": 1234, "validation_loss": 3.5, "cut": {}}))
    export(folder, tmp_path / "out")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("Return a <mask> list.", return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(4) == 1
    assert ids[-1] == tiny.EOS
    assert tokenizer.mask_token_id == 4
    with torch.inference_mode():
        logits, expected = theirs(**inputs).logits, ours.logits(ours(inputs["input_ids"]))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    card = (tmp_path / "out/README.md").read_text()
    assert "1234" in card
    assert "BertForMaskedLM" in card
    assert "license" in card


def test_a_language_model_goes_on_from_a_text(tmp_path: Path) -> None:
    ours = tiny.model(**LLAMA)
    export(model_folder(tmp_path, ours), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids == [1, *tiny.encoded([TEXTS[0]])[0]]  # as pre-training shows a text: after <s>
    assert theirs.generation_config.max_length == ours.config.max_length
    written = theirs.generate(**inputs, max_length=len(ids) + 6)[0].tolist()
    for _ in range(6):
        ids.append(int(ours.logits(ours(torch.tensor([[]], dtype=torch.long), torch.tensor([ids])))[0, -1].argmax()))
    assert written == ids


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"positions": "alibi"}, "positions alibi"),
        ({"window": 4}, "window 4"),
        (GPT2 | {"bidirectional_prefix": True}, "bidirectional_prefix"),
        ({"embeddings": "characters", "tied_output": False}, "embeddings characters"),
    ],
)
def test_an_export_that_is_refused_leaves_nothing(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, tiny.model(**changes), LIMITS)
    before = names(tmp_path)
    with pytest.raises(PipelineError, match=named):
        export(folder, tmp_path / "out")
    assert names(tmp_path) == before


@pytest.mark.parametrize("factor", [1e6, float("nan")])
def test_logits_that_differ_leave_nothing(factor: float, tmp_path: Path) -> None:
    ours = tiny.model()  # numbers so large that float32 cannot agree within 1e-4, and none at all
    ours.decoder.norm.weight.data *= factor
    folder = model_folder(tmp_path, ours, LIMITS)
    before = names(tmp_path)
    with pytest.raises(PipelineError, match=r"logits differ by up to (\d|nan).*; nothing was kept"):
        export(folder, tmp_path / "deep/out")
    theirs = to_hugging_face(ours)
    theirs.save_pretrained(tmp_path / "published")
    tiny.write_tokenizer(tmp_path / "published")
    with pytest.raises(PipelineError, match=r"logits differ by up to (\d|nan)"):
        import_model(tmp_path / "published", tmp_path / "out")
    assert names(tmp_path) == before | {"published"}


def test_an_output_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, tiny.model())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").write_text("mine")
    with pytest.raises(PipelineError, match="is there already"):
        export(folder, tmp_path / "out")
    assert (tmp_path / "out/kept").read_text() == "mine"


def test_the_command_line_exports_and_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder(tmp_path, tiny.model(), LIMITS)
    assert main(["export", str(folder), str(tmp_path / "there")]) == 0
    assert main(["import", str(tmp_path / "there"), str(tmp_path / "back")]) == 0
    assert "PegasusForConditionalGeneration, logits within" in capsys.readouterr().out
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_command_line_explains_itself_and_errors_are_one_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lightning_modules.interop.huggingface", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    helped = run("--help")
    assert helped.returncode == 0
    assert "interop.huggingface export models/" in helped.stdout
    assert "interop.huggingface import path/to/checkpoint imported/" in helped.stdout
    failed = run("export", str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
