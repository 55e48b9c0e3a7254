"""CTranslate2 writes what our network does, computed here without caches; what it cannot follow leaves nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lightning_modules.errors import PipelineError
from lightning_modules.interop.ctranslate2 import export, main, vocabulary
from lightning_modules.interop.ctranslate2_spec import make_spec
from lightning_modules.interop.samples import sample_rows
from lightning_modules.model_folder import save_model
from lightning_modules.vocabulary import token_bytes

REPOSITORY = Path(__file__).parents[1]
SENTENCES = tiny.sentences()[:100]
ALONE = {"device": "cpu", "inter_threads": 1, "intra_threads": 1}
MOST = 20  # tokens written
DECODER, ENCODER = {"architecture": "decoder"}, {"architecture": "encoder"}
LLAMA = {"positions": "rotary", "activation": "swiglu", "norm_type": "rms", "bias": False, "scale_embeddings": False}
T5 = {"positions": "relative", "scale_attention": False, "scale_logits": True, "norm_type": "rms", "norm_eps": 1e-6}


def attentive(seed: int = 0, **changes: Any) -> Any:
    """A random model whose every output depends on its source, positions included."""
    made = tiny.model(seed, **({"tied_output": False} | changes))
    for name, parameter in made.named_parameters():
        if "query.weight" in name or "key_value.weight" in name or "weight_NH" in name:
            parameter.data *= 2.0
    if made.config.embeddings == "characters":
        made.embedding.spell(token_bytes(tiny.tokenizer()))
        every = torch.arange(tiny.VOCAB_SIZE)[None]
        made.embedding.projection.weight.data *= 0.1
        made.embedding.projection.bias.data -= made.embedding(every)[0].mean(0).detach()  # what all tokens share
    head = made.embedding if made.head.weight_VD is None else made.head
    head.weight_VD.data *= 3.0
    head.weight_VD.data[tiny.EOS] *= 1.5
    return made


def folder(root: Path, model: Any, name: str = "model", tokenizer_file: Path | None = None) -> Path:
    (root / name).mkdir(parents=True)
    save_model(root / name, model, tokenizer_file or tiny.write_tokenizer(root / "tokenizer"), {})
    return root / name


def sources() -> list[list[int]]:
    return [[*ids, tiny.EOS] for ids in tiny.encoded(SENTENCES)]


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, given in zip(ids, rows, strict=True):
        row[-len(given) if left else 0 : None if left else len(given)] = torch.tensor(given)
    return ids, ids != 0


@torch.inference_mode()
def written(model: Any) -> list[list[int]]:
    """What our network writes after each sentence, read anew at each step."""
    source, real = padded(sources(), left=model.config.architecture == "decoder")
    target = torch.full((len(source), 1), model.config.bos_id)
    for _ in range(MOST):
        best = model.logits(model(source, target, real)[:, -1:]).argmax(-1)
        target = torch.cat([target, best], dim=1)
    rows = target[:, 1:].tolist()
    return [row[: row.index(tiny.EOS)] if tiny.EOS in row else row for row in rows]


def written_by_ctranslate2(exported: Path, prompts: bool) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    tokens = [[*tokenizer.encode(text).tokens, "</s>"] for text in SENTENCES]
    if prompts:
        generator = ctranslate2.Generator(str(exported), **ALONE)
        prompted = [[*row, "<s>"] for row in tokens]
        results = generator.generate_batch(prompted, max_length=MOST, include_prompt_in_result=False)
        return [result.sequences_ids[0] for result in results]
    translator = ctranslate2.Translator(str(exported), **ALONE)
    results = translator.translate_batch(tokens, beam_size=1, max_decoding_length=MOST, min_decoding_length=0)
    return [[tokenizer.token_to_id(token) for token in result.hypotheses[0]] for result in results]


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "pre"},
        {"norm": "post", "activation": "gelu"},
        {"norm": "post", "positions": "learned", "embedding_norm": True, "output_bias": True},
        {**T5, "activation": "geglu_tanh", "relative_buckets": 8, "relative_distance": 16},
        {**LLAMA, "key_value_heads": 2, "head_width": 12},
        {"positions": "none", "activation": "gelu_tanh", "bias": False, "embeddings": "characters"},
        {**DECODER, "positions": "learned", "activation": "gelu_tanh", "scale_embeddings": False},
        {**DECODER, **LLAMA, "key_value_heads": 2, "rotary_scaling": 2.0, "rotary_base": 500.0, "qk_norm": True},
        {**DECODER, "positions": "alibi", "d_model": 36, "heads": 6, "key_value_heads": 1, "norm": "post"},
        {**DECODER, "head_width": 12, "activation": "geglu", "norm_eps": 0.01},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_ctranslate2_writes_the_same_for_a_hundred_sentences(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = attentive(**changes)
    export(folder(tmp_path, model), tmp_path / "exported")
    ours = written(model)
    assert len({tuple(row) for row in ours}) > 50  # or it would say little
    assert written_by_ctranslate2(tmp_path / "exported", model.config.architecture == "decoder") == ours


def test_a_tied_output_is_stored_once_and_writes_the_same(tmp_path: Path) -> None:
    model = tiny.lively()
    export(folder(tmp_path, model), tmp_path / "exported")
    ours = written(model)
    assert len({tuple(row) for row in ours}) > 20
    assert written_by_ctranslate2(tmp_path / "exported", prompts=False) == ours
    positions = 4 * 1024 * model.config.d_model  # the table that both stacks share
    weights = 4 * sum(map(torch.numel, model.parameters()))
    assert (tmp_path / "exported" / "model.bin").stat().st_size < weights + positions + 20_000


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned", "embedding_norm": True, "token_types": 2, "activation": "gelu", "norm": "post"},
        {"positions": "relative", "output_transform": True},
        {**LLAMA, "key_value_heads": 2, "qk_norm": True},
    ],
    ids=lambda changes: changes["positions"],
)
def test_an_encoder_gives_the_same_hidden_vectors(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny.model(**ENCODER, **changes)
    export(folder(tmp_path, model), tmp_path / "exported")
    encoder = ctranslate2.Encoder(str(tmp_path / "exported"), **ALONE)
    ids, real = padded(sources(), left=False)
    with torch.inference_mode():
        ours = model(ids, real)
    theirs = torch.from_numpy(np.array(encoder.forward_batch(sources()).last_hidden_state))
    torch.testing.assert_close(theirs[real], ours[real], rtol=1e-4, atol=1e-4)


def test_the_segments_of_an_encoder_are_told_apart(tmp_path: Path) -> None:
    model = tiny.model(**ENCODER, token_types=2)
    export(folder(tmp_path, model), tmp_path / "exported")
    encoder = ctranslate2.Encoder(str(tmp_path / "exported"), **ALONE)
    row, types = sources()[0], [number % 2 for number in range(len(sources()[0]))]
    with torch.inference_mode():
        ours = model(torch.tensor([row]), types_BS=torch.tensor([types]))
    theirs = encoder.forward_batch([row], token_type_ids=[types]).last_hidden_state
    torch.testing.assert_close(torch.from_numpy(np.array(theirs)), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, DECODER, ENCODER], ids=["encoder_decoder", "decoder", "encoder"])
def test_eight_bits_are_smaller_and_stay_near(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = folder(tmp_path, tiny.model(**changes))
    export(given, tmp_path / "whole", texts=SENTENCES)
    export(given, tmp_path / "small", "int8", SENTENCES)
    whole, small = ((tmp_path / name / "model.bin").stat().st_size for name in ("whole", "small"))
    assert small < 0.7 * whole  # the table of positions and the norms stay in float32
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said] == [f"{tmp_path}/whole: float32", f"{tmp_path}/small: int8"]
    assert "of 100 inputs" in said[1] if changes == ENCODER else "of 100 outputs" in said[1]


def test_eight_bits_that_move_probabilities_far_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = attentive()
    for block in (*model.encoder.blocks, *model.decoder.blocks):  # an input that is always 0 takes all of the 8 bits
        block.feed_forward.inner.bias.data[0] = -1e3
        block.feed_forward.outer.weight.data[:, 0] = 1e4
    given, before = folder(tmp_path, model), sorted(tmp_path.iterdir())
    export(given, tmp_path / "whole")
    with pytest.raises(PipelineError, match=r"\(int8\): .*% of 64 outputs .*; nothing was kept\. .*CT2_USE_MKL=1"):
        export(given, tmp_path / "small", "int8")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "whole"])


def test_weights_that_give_no_numbers_are_refused(tmp_path: Path) -> None:
    model = attentive()
    model.decoder.blocks[1].feed_forward.outer.bias.data[3] = float("nan")
    given, before = folder(tmp_path, model), sorted(tmp_path.iterdir())
    with pytest.raises(PipelineError, match="nothing was kept"):
        export(given, tmp_path / "exported")
    assert sorted(tmp_path.iterdir()) == before


def test_outputs_that_part_where_rounding_decides_are_not_held_against_an_export(tmp_path: Path) -> None:
    model = attentive()
    model.head.weight_VD.data[101::2] = model.head.weight_VD.data[100::2] * (1 + 1e-7)  # twins but for a last digit
    export(folder(tmp_path, model), tmp_path / "exported")
    assert written_by_ctranslate2(tmp_path / "exported", prompts=False) != written(model)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("activation", {"activation": "relu2"}),
        ("output_transform", {"output_transform": True}),
        ("positions", {"positions": "alibi"}),
        ("positions", {**DECODER, "positions": "relative"}),
        ("window", {**DECODER, "window": 4}),
        ("qk_norm", {"qk_norm": True}),
        ("bidirectional_prefix", {**DECODER, "bidirectional_prefix": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_counterpart_is_refused_by_name_in_one_line(
    tmp_path: Path, field: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given, before = folder(tmp_path, tiny.model(**changes)), sorted(tmp_path.iterdir())
    assert main([str(given), str(tmp_path / "exported")]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {given} has no counterpart in CTranslate2: {field}: ")
    assert said.err.count("\n") == 1
    assert not said.out
    assert sorted(tmp_path.iterdir()) == before


def test_a_reader_of_spans_is_refused(tmp_path: Path) -> None:
    given = folder(tmp_path, tiny.reader())
    with pytest.raises(PipelineError, match="writes nothing, and CTranslate2 is for models that do"):
        export(given, tmp_path / "exported")


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    given = folder(tmp_path, tiny.model())
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine.txt").write_text("mine")
    with pytest.raises(PipelineError, match="is there already"):
        export(given, tmp_path / "exported")
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["mine.txt"]


def test_quantising_leaves_our_own_weights_alone() -> None:
    model = attentive(key_value_heads=2, output_bias=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = make_spec(model)
    for register in (spec.register_source_vocabulary, spec.register_target_vocabulary):
        register(vocabulary(tiny.tokenizer(), tiny.VOCAB_SIZE))
    spec.validate()
    spec.optimize("int8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_ids_without_a_token_get_names_that_no_token_has(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<unused_601>"])  # id 600
    names = vocabulary(tokenizer, 603)
    assert names[:601] == [tokenizer.id_to_token(number) for number in range(601)]
    assert len(set(names)) == 603
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    export(folder(tmp_path, attentive(vocab_size=603), tokenizer_file=tmp_path / "tokenizer.json"), tmp_path / "out")


def test_drawn_inputs_are_plain_texts_always_the_same_and_end_in_eos() -> None:
    rows = sample_rows(tiny.tokenizer(), ["A text.", "<s> stays text"], 20, tiny.EOS)
    assert rows == sample_rows(tiny.tokenizer(), ["A text.", "<s> stays text"], 20, tiny.EOS)
    assert len(rows) == 64
    assert rows[0] == [*tiny.encoded(["A text."])[0], tiny.EOS]
    assert max(map(len, rows)) == 20
    assert all(row[-1] == tiny.EOS and tiny.EOS not in row[:-1] for row in rows)
    assert len({token for row in rows[2:] for token in row}) > 200
    assert len(sample_rows(tiny.tokenizer(), tiny.sentences(), 20, tiny.EOS)) == 256


def test_a_file_of_texts_is_what_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, file = folder(tmp_path, attentive(**DECODER)), tmp_path / "texts"
    file.write_text("\n\n".join(SENTENCES[:70]), encoding="utf-8")
    assert main([str(given), str(tmp_path / "exported"), "--sample", str(file)]) == 0
    assert "100.0% of 70 outputs are identical" in capsys.readouterr().out
    for content in (b"", b" \n", b"\xff"):
        file.write_bytes(content)
        assert main([str(given), str(tmp_path / "other"), "--sample", str(file)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {file} ")
    assert not (tmp_path / "other").exists()


def test_the_command_line_helps_with_an_example_and_names_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_modules.interop.ctranslate2"]
    helped = subprocess.run([*command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "python -m lightning_modules.interop.ctranslate2 models/" in helped.stdout
    wrong = subprocess.run(
        [*command, str(tmp_path / "none"), str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert wrong.stderr.startswith(f"error: {tmp_path}/none is not a whole model folder")
    assert wrong.stderr.count("\n") == 1
