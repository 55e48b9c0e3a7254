"""The whole network against Hugging Face's Marian and Pegasus with the same weights; masks, cache, initial weights."""

import math
from typing import Any

import pytest
import torch
from reference import hugging_face
from tiny import VOCAB_SIZE, batch, config, model, source_mask
from torch.nn import functional

from lightning_modules.model_folder import new_model
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.model import EncoderDecoder, count_parameters, shift_right

LENGTHS = [([1], [1]), ([9, 4, 1], [5, 8, 2]), ([40, 33], [1, 3]), ([3, 90], [70, 64])]


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("sources", "targets"), LENGTHS)
def test_logits_and_gradients_are_those_of_hugging_face(norm: str, sources: list[int], targets: list[int]) -> None:
    ours = model(norm=norm, encoder_layers=2, decoder_layers=3)
    theirs = hugging_face(ours)
    source_BS, target_BT = batch(1, sources, targets)
    shifted_BT, real_BT = shift_right(target_BT, bos_id=1), target_BT != 0
    logits = ours.logits(ours(source_BS, shifted_BT, source_mask(source_BS)))
    expected = theirs(
        input_ids=source_BS,
        attention_mask=(source_BS != 0).long(),
        decoder_input_ids=shifted_BT,
        decoder_attention_mask=real_BT.long(),
    ).logits
    assert logits.abs().max() > 0.5  # else any two would be close
    torch.testing.assert_close(logits[real_BT], expected[real_BT], atol=1e-4, rtol=1e-5)

    for network, scores in ((ours, logits), (theirs, expected)):
        functional.cross_entropy(scores[real_BT], target_BT[real_BT]).backward()
        assert network is not None
    for name, got, wanted in _gradients(ours, theirs):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def _gradients(ours: EncoderDecoder, theirs: Any) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    def of(parameter: torch.Tensor) -> torch.Tensor:
        assert parameter.grad is not None
        return parameter.grad

    pairs = [("embedding", of(ours.embedding.weight_VD), of(theirs.model.shared.weight))]
    for stack, blocks in (("encoder", ours.encoder), ("decoder", ours.decoder)):
        for number, (layer, block) in enumerate(zip(getattr(theirs.model, stack).layers, blocks, strict=True)):
            attentions = [(layer.self_attn, block.attention)]
            if stack == "decoder":
                attentions.append((layer.encoder_attn, block.cross_attention))
            for them, us in attentions:
                key_value = torch.cat([of(them.k_proj.weight), of(them.v_proj.weight)])
                pairs += [
                    (f"{stack} {number} query", of(us.query.weight), of(them.q_proj.weight)),
                    (f"{stack} {number} key, value", of(us.key_value.weight), key_value),
                    (f"{stack} {number} output", of(us.output.bias), of(them.out_proj.bias)),
                ]
            pairs += [
                (f"{stack} {number} inner", of(block.feed_forward.inner.weight), of(layer.fc1.weight)),
                (f"{stack} {number} outer", of(block.feed_forward.outer.weight), of(layer.fc2.weight)),
                (
                    f"{stack} {number} norm",
                    of(block.feed_forward_residual.norm.weight),
                    of(layer.final_layer_norm.weight),
                ),
            ]
    return pairs


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_padding_of_the_source_changes_nothing(norm: str) -> None:
    ours = model(norm=norm)
    source_BS, target_BT = batch(2, [7, 3], [5, 5])
    out = ours(source_BS, target_BT, source_mask(source_BS))
    other_BS = torch.where(source_BS == 0, 77, source_BS)
    torch.testing.assert_close(ours(other_BS, target_BT, source_mask(source_BS)), out, atol=0, rtol=0)
    alone = ours(source_BS[1:, :3], target_BT[1:])
    torch.testing.assert_close(out[1:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(other_BS, target_BT, None), out, atol=1e-3)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_later_target_token_never_changes_an_earlier_prediction(norm: str) -> None:
    ours = model(norm=norm)
    source_BS, target_BT = batch(3, [6], [8])
    out = ours(source_BS, target_BT)
    for position in range(8):
        changed = target_BT.clone()
        changed[:, position] = 5 + (target_BT[:, position] + 1) % 500
        after = ours(source_BS, changed)
        torch.testing.assert_close(after[:, :position], out[:, :position], atol=0, rtol=0)
        assert not torch.allclose(after[:, position], out[:, position], atol=1e-3)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_decoding_with_a_cache_gives_the_full_pass(norm: str) -> None:
    ours = model(norm=norm)
    source_BS, target_BT = batch(4, [9, 2, 5], [12, 12, 12])
    mask = source_mask(source_BS)
    full = ours(source_BS, target_BT, mask)
    memory, caches = ours.encode(source_BS, mask), ours.new_caches()
    for position in range(12):
        step = ours.decode(target_BT[:, position : position + 1], memory, mask, caches, start=position)
        torch.testing.assert_close(step[:, 0], full[:, position], atol=1e-5, rtol=1e-5)


def test_shift_right_puts_the_start_in_front_and_drops_the_last() -> None:
    assert shift_right(torch.tensor([[7, 8, 2], [9, 2, 0]]), bos_id=1).tolist() == [[1, 7, 8], [1, 9, 2]]


def test_a_sequence_longer_than_the_table_is_refused_on_either_side() -> None:
    ours = model(max_length=10)
    for sources, targets in (([11], [3]), ([3], [11])):
        with pytest.raises(ValueError, match="max_length"):
            ours(*batch(0, sources, targets))
    assert ours(*batch(0, [10], [10])).shape == (1, 10, 32)


@pytest.mark.parametrize(("d_model", "heads"), [(30, 4), (3, 1)])
def test_impossible_shapes_are_refused(d_model: int, heads: int) -> None:
    with pytest.raises(ValueError, match=r"heads|odd"):
        config(d_model=d_model, heads=heads)


def test_the_number_of_parameters_is_what_the_paper_counts() -> None:
    """Written out for the base model of the paper: shared embeddings once, biases, no learned positions."""
    with torch.device("meta"):
        base = EncoderDecoder(TransformerConfig(37_000, 512, 8, 2048, 6, 6, 0.1, "post", 512))
    attention, norm = 4 * (512 * 512 + 512), 2 * 512
    feed_forward = 512 * 2048 + 2048 + 2048 * 512 + 512
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    assert count_parameters(base) == 37_000 * 512 + 6 * (encoder + decoder)


@pytest.mark.parametrize(("norm", "most"), [("post", 1.15), ("pre", 1.03)])
@pytest.mark.parametrize("d_model", [64, 256])
def test_a_fresh_model_guesses_about_evenly(norm: str, most: float, d_model: int) -> None:
    """ln V nats, and half a nat more where logits have unit variance; a badly scaled model costs several."""
    fresh = new_model(config(norm=norm, d_model=d_model), seed=3).eval()
    source_BS, target_BT = batch(5, [30] * 8, [30] * 8)
    logits = fresh.logits(fresh(source_BS, shift_right(target_BT, 1)))
    loss = functional.cross_entropy(logits.flatten(0, 1), target_BT.flatten()).item()
    assert math.log(VOCAB_SIZE) < loss < math.log(VOCAB_SIZE) * most


def test_the_same_seed_gives_the_same_weights_and_another_other_ones() -> None:
    one, same, other = (new_model(config(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embedding.weight_VD"], other["embedding.weight_VD"])
