"""First weights: each kind of matrix has the spread of its source's rule, and what is not a matrix starts neutral."""

from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE, config, tokenizer
from torch import Tensor, nn

from lightning_modules.transformer.layers import Block
from lightning_modules.transformer.model import make_model

D, F, HEADS, WIDTH, GROUPS = 128, 512, 4, 48, 2
ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")


def fresh(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"d_model": D, "d_ff": F, "heads": HEADS, "head_width": WIDTH, "key_value_heads": GROUPS}
    return make_model(config(**(shape | {"norm": "post"} | changes)))


def blocks(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def matrices(block: Block) -> dict[str, list[Tensor]]:
    """The matrices of a block by kind; those kept in one tensor taken apart."""
    attentions = [block.attention, *([block.cross_attention] if hasattr(block, "cross_attention") else [])]
    feed = block.feed_forward
    return {
        "query": [attention.query.weight for attention in attentions],
        "key": [attention.key_value.weight[: GROUPS * WIDTH] for attention in attentions],
        "value": [attention.key_value.weight[GROUPS * WIDTH :] for attention in attentions],
        "output": [attention.output.weight for attention in attentions],
        "inner": list(feed.inner.weight.split(F)),
        "outer": [feed.outer.weight],
    }


def spread(weights: list[Tensor], expected: float) -> None:
    for weight in weights:
        assert weight.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(weight.mean().item()) < 4 * expected / weight.numel() ** 0.5


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_xavier_draws_each_matrix_by_its_own_width(activation: str) -> None:
    """Glorot and Bengio 2010, equation 16: uniform up to √(6 / (in + out)), also where two share a tensor."""
    for block in blocks(fresh(activation=activation)):
        for kind, weights in matrices(block).items():
            ins, outs = {
                "query": (D, HEADS * WIDTH),
                "output": (HEADS * WIDTH, D),
                "inner": (D, F),
                "outer": (F, D),
            }.get(kind, (D, GROUPS * WIDTH))
            bound = (6 / (ins + outs)) ** 0.5
            spread(weights, bound / 3**0.5)
            assert all(0.99 * bound < weight.abs().max().item() <= bound for weight in weights), kind


def test_normal_draws_everything_with_the_same_deviation() -> None:
    made = fresh(
        architecture="encoder", initialization="normal", positions="learned", token_types=200, output_transform=True
    )
    tables = [made.embedding.weight_VD, made.encoder.positions.weight_LD, made.types.weight]
    for block in blocks(made):
        for weights in matrices(block).values():
            spread(weights, 0.02)
    spread([*tables, made.head.transform[0].weight], 0.02)


@pytest.mark.parametrize("scaled", [False, True])
def test_t5_draws_by_the_width_summed_over_and_its_queries_smaller_unless_scores_are_scaled(scaled: bool) -> None:
    """As in Mesh TensorFlow's layers, with which T5 was trained: its queries carry the 1/√K that its scores lack."""
    made = fresh(initialization="t5", positions="relative", norm="pre", scale_attention=scaled, relative_buckets=64)
    query = D**-0.5 if scaled else (D * WIDTH) ** -0.5
    expected = {"query": query, "key": D**-0.5, "value": D**-0.5, "inner": D**-0.5}
    expected |= {"output": (HEADS * WIDTH) ** -0.5, "outer": F**-0.5}
    for block in blocks(made):
        for kind, weights in matrices(block).items():
            spread(weights, expected[kind])
    spread([made.embedding.weight_VD], 1.0)
    bias_NH = torch.cat([made.encoder.bias.weight_NH, made.decoder.bias.weight_NH])
    assert bias_NH.std().item() == pytest.approx(D**-0.5, rel=0.15)


@pytest.mark.parametrize("initialization", ["xavier", "normal"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_before_the_part_what_writes_to_the_residual_is_quieter_by_the_root_of_the_writers(
    architecture: str, initialization: str
) -> None:
    """GPT-2, section 2.3: 1/√N, N the number of residual layers; with attention to a source a block has three."""
    shape: dict[str, Any] = {"architecture": architecture, "initialization": initialization}
    shape |= {"encoder_layers": 2, "decoder_layers": 3}
    pre, post = fresh(norm="pre", **shape), fresh(norm="post", **shape)
    for stack in ("encoder", "decoder"):
        if not hasattr(pre, stack):
            continue
        quiet, loud = blocks(getattr(pre, stack)), blocks(getattr(post, stack))
        writers = len(quiet) * (3 if hasattr(quiet[0], "cross_attention") else 2)
        for one, other in zip(quiet, loud, strict=True):
            theirs = matrices(other)
            for kind, weights in matrices(one).items():
                factor = writers**-0.5 if kind in ("output", "outer") else 1.0
                for ours, plain in zip(weights, theirs[kind], strict=True):
                    assert ours.std().item() == pytest.approx(plain.std().item() * factor, rel=0.03), kind


@pytest.mark.parametrize("initialization", ["xavier", "normal", "t5"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_biases_start_at_zero_and_normalisations_as_the_identity(
    architecture: str, norm: str, initialization: str
) -> None:
    made = fresh(
        architecture=architecture,
        norm=norm,
        initialization=initialization,
        embedding_norm=True,
        qk_norm=True,
        output_bias=True,
        output_transform=True,
        scale_embeddings=False,
    )
    seen = 0
    for name, parameter in made.named_parameters():
        if parameter.ndim == 1:
            seen += 1
            is_weight_of_norm = name.endswith("weight")
            assert torch.equal(parameter, torch.full_like(parameter, float(is_weight_of_norm))), name
    assert seen > 20


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_scaled_tied_embeddings_what_feeds_the_output_starts_quiet(architecture: str) -> None:
    made = fresh(architecture=architecture, norm="pre")
    last = {name: p for name, p in made.named_parameters() if name in ("encoder.norm.weight", "decoder.norm.weight")}
    feeding = "encoder.norm.weight" if architecture == "encoder" else "decoder.norm.weight"
    for name, weight in last.items():
        expected = D**-0.25 if name == feeding else 1.0
        torch.testing.assert_close(weight, torch.full_like(weight, expected), msg=name)
    untied = fresh(architecture=architecture, norm="pre", tied_output=False)
    assert (untied.get_parameter(feeding) == 1).all()


def test_embeddings_have_unit_variance_going_in_and_coming_out() -> None:
    made = fresh(vocab_size=4000)
    assert made.embed(torch.arange(4000)).std().item() == pytest.approx(1.0, rel=0.02)
    normal = nn.functional.layer_norm(torch.randn(50, D), (D,))
    assert made.logits(normal).std().item() == pytest.approx(1.0, rel=0.03)
    spread([fresh(tied_output=False, vocab_size=4000).head.weight_VD], D**-0.5)


@pytest.mark.parametrize("initialization", ["xavier", "normal", "t5"])
def test_characters_are_loud_enough_to_tell_tokens_apart_and_none_has_no_vector(initialization: str) -> None:
    made = fresh(embeddings="characters", tied_output=False, initialization=initialization)
    assert (made.embedding.character.weight[0] == 0).all()
    spread([made.embedding.character.weight[1:]], 1.0)
    assert all((layer.bias == 0).all() for layer in made.embedding.filters)
    vocabulary = tokenizer()
    made.embedding.spell([(vocabulary.id_to_token(n) or "").encode() for n in range(VOCAB_SIZE)])
    x_VD = made.embed(torch.arange(VOCAB_SIZE))
    assert x_VD.std(0).mean() > 0.4 * x_VD.mean(0).square().mean().sqrt()


def test_the_same_seed_gives_the_same_weights_and_another_other_ones() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(make_model(config()).state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not torch.equal(drawn[0]["embedding.weight_VD"], drawn[2]["embedding.weight_VD"])
