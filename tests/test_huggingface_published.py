"""Published models in our parts: the same logits as Hugging Face's own code gives, the same bits back, refusals."""

from typing import Any

import pytest
import torch
import transformers
from two_hands import require_equal_logits

from lightning_modules.errors import PipelineError
from lightning_modules.interop.huggingface import from_hugging_face, to_hugging_face

SHAPE = {"vocab_size": 600, "d_model": 32}
BART_SHAPE = SHAPE | {
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
}
T5_SHAPE = SHAPE | {"d_kv": 4, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4}
LLAMA_SHAPE = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
GPT2_SHAPE = {"vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
BERT_SHAPE = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
}
# As others write their configurations: none of it made by the code under test.
THEIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "marian": ("MarianConfig", "MarianMTModel", BART_SHAPE | {"pad_token_id": 599, "decoder_start_token_id": 599}),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", BART_SHAPE | {"scale_embedding": True}),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART_SHAPE),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5_SHAPE | {"decoder_start_token_id": 0}),
    "t5 v1.1": (
        "T5Config",
        "T5ForConditionalGeneration",
        T5_SHAPE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0},
    ),
    "gpt-2": ("GPT2Config", "GPT2LMHeadModel", GPT2_SHAPE | {"bos_token_id": 599, "eos_token_id": 599}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA_SHAPE),
    "llama, scaled": (
        "LlamaConfig",
        "LlamaForCausalLM",
        LLAMA_SHAPE
        | {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", LLAMA_SHAPE | {"head_dim": 16, "eos_token_id": [7, 8]}),
    "bert": ("BertConfig", "BertForMaskedLM", BERT_SHAPE),
}


def published(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model of Hugging Face's with all weights random, biases and norms too."""
    config_class, model_class, settings = THEIRS[name]
    torch.manual_seed(seed)
    made = getattr(transformers, model_class)(getattr(transformers, config_class)(**(settings | changes)))
    if name == "t5 v1.1":
        made.lm_head.weight = torch.nn.Parameter(torch.randn(600, 32))
    for parameter_name, parameter in made.named_parameters():
        if "embed_positions" not in parameter_name or name == "bart":
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    if "final_logits_bias" in made.state_dict():
        made.final_logits_bias.add_(0.1 * torch.randn(600))
    return made.eval()


@pytest.mark.parametrize("name", THEIRS)
def test_a_published_model_in_our_parts_gives_the_same_logits_and_the_same_bits_back(name: str) -> None:
    theirs = published(name)
    ours = from_hugging_face(theirs)
    require_equal_logits(ours, theirs, [1], [1])
    require_equal_logits(ours, theirs, [9, 4, 1], [5, 8, 2])
    require_equal_logits(ours, theirs, [3, 60], [64, 50])
    back = to_hugging_face(ours)
    assert type(back) is type(theirs)
    after = back.state_dict()
    for tensor_name, tensor in theirs.state_dict().items():
        unread = 2 if name == "bart" and "embed_positions" in tensor_name else 0
        assert torch.equal(tensor[unread:], after[tensor_name][unread:]), tensor_name
        assert not after[tensor_name][:unread].any()


def test_special_tokens_are_those_of_the_published_configuration() -> None:
    marian = from_hugging_face(published("marian")).config
    assert (marian.pad_id, marian.bos_id, marian.eos_id) == (599, 599, 0)
    bart = from_hugging_face(published("bart")).config
    assert (bart.pad_id, bart.bos_id, bart.eos_id) == (1, 2, 2)  # BART's decoder reads </s> first
    assert from_hugging_face(published("qwen3")).config.eos_id == 7
    gpt2 = from_hugging_face(published("gpt-2")).config
    assert (gpt2.pad_id, gpt2.bos_id, gpt2.eos_id) == (599, 599, 599)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("marian", {"activation_function": "quick_gelu"}, "activation quick_gelu"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("bart", {"decoder_attention_heads": 8}, "encoder_attention_heads 4 and decoder_attention_heads 8"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "activation gated-relu"),
        ("gpt-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt-2", {"add_cross_attention": True}, "add_cross_attention"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("llama", {"mlp_bias": True}, "attention_bias and mlp_bias"),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "rope_type llama3",
        ),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ("bert", {"hidden_act": "relu"}, "hidden_act relu"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type relative_key"),
        ("bert", {"is_decoder": True}, "is_decoder"),
    ],
)
def test_what_our_parts_do_not_compute_is_refused_in_one_line(name: str, changes: dict[str, Any], named: str) -> None:
    theirs = published(name, **changes)
    with pytest.raises(PipelineError, match=named) as refusal:
        from_hugging_face(theirs)
    assert "\n" not in str(refusal.value)


def test_a_class_of_another_family_is_refused() -> None:
    settings = BERT_SHAPE | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    theirs = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**settings))
    with pytest.raises(PipelineError, match="window by turns"):
        from_hugging_face(theirs)
    bare = transformers.BertModel(transformers.BertConfig(**BERT_SHAPE))
    with pytest.raises(PipelineError, match=r"BertModel .* is not covered"):
        from_hugging_face(bare)


def test_a_weight_that_would_be_lost_is_refused() -> None:
    theirs = published("pegasus", tie_word_embeddings=False)
    with pytest.raises(PipelineError, match=r"embed_tokens\.weight and model\.shared\.weight differ"):
        from_hugging_face(theirs)
    theirs = published("pegasus")
    theirs.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(PipelineError, match=r"model\.extra\.weight"):
        from_hugging_face(theirs)
