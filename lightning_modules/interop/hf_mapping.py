"""The same network in Hugging Face's standard classes and in ours. Costs a copy of the weights each way.

Going there and back gives the same tensors, bit for bit. A model without biases in a family that has them becomes one
whose biases are zero. Dropout is carried over as far as the other side has it: T5 has one rate for all, Llama and Qwen3
have that of the attention alone.
"""

from typing import Any

from lightning_modules.errors import PipelineError
from lightning_modules.interop import hf_bart, hf_bert, hf_decoders, hf_t5
from lightning_modules.interop.hf_families import Family, check_readable, choose
from lightning_modules.interop.hf_weights import to_ours, to_theirs
from lightning_modules.model_folder import Model
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.model import Decoder, Encoder, EncoderDecoder, make_model

FAMILIES = [*hf_bart.FAMILIES, *hf_t5.FAMILIES, *hf_decoders.FAMILIES, *hf_bert.FAMILIES]


def family_of(config: TransformerConfig) -> Family:
    """The family that computes what `config` says. Raises PipelineError, naming the fields at fault, if none does."""
    return choose(config, FAMILIES)


def to_hugging_face(model: Model) -> Any:
    """The same network as a `transformers.PreTrainedModel` of a standard class: float32, in evaluation mode.

    Raises PipelineError, naming the field at fault, where no standard class computes what the model does.
    """
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(model, SpanReader):
        raise PipelineError("reads_spans: a model that points at answers has no counterpart here; export its encoder")
    if isinstance(model, Classifier):
        raise PipelineError("labels: a model that names classes by a mean has no counterpart here; export its encoder")
    config = model.config
    family = family_of(config)
    ids = {"pad_token_id": config.pad_id, "bos_token_id": config.bos_id, "eos_token_id": config.eos_id}
    if config.architecture == "encoder_decoder":
        ids["decoder_start_token_id"] = config.bos_id
    try:
        their_config = getattr(transformers, family.config_class)(**family.to_theirs(config), **ids)
    except (ValueError, StrictDataclassError) as error:
        raise PipelineError(f"no {family.name} can be such a model: {' '.join(str(error).split())}") from error
    theirs = getattr(transformers, family.model_class)(their_config).float().eval()
    if not config.tied_output:  # T5's class ties always, then keeps apart what a checkpoint has apart
        head = theirs.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        theirs.config.tie_word_embeddings = False
    state = theirs.state_dict()
    ours = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    found = to_theirs(family.links(config), ours, state)
    missing = [name for name in state if name not in found and not family.computed(name)]
    assert not missing, f"{family.name}: nothing was said about {missing}"
    theirs.load_state_dict(found, strict=False)
    return theirs


def from_hugging_face(theirs: Any) -> Encoder | Decoder | EncoderDecoder:
    """The same network from our parts: float32, in evaluation mode.

    Special tokens that the model's configuration does not name get the id of one that it does. Raises PipelineError
    where the class is none of the families' here, or the model uses something that our parts do not compute.
    """
    name = type(theirs).__name__
    family = next((family for family in FAMILIES if family.model_class == name), None)
    if family is None:
        raise PipelineError(why_not(theirs.config.model_type, name))
    check_readable(family, theirs.config)
    tensors = {name: tensor.detach().float().cpu() for name, tensor in theirs.state_dict().items()}
    stacks = {"encoder_layers": 0, "decoder_layers": 0, "initialization": family.initialization}
    fields = family.fixed() | stacks | family.to_ours(theirs.config, tensors) | _special_ids(theirs)
    if fields.get("key_value_heads") == fields["heads"]:
        fields["key_value_heads"] = None
    if (fields.get("head_width") or 0) * fields["heads"] == fields["d_model"]:
        fields["head_width"] = None
    try:
        config = TransformerConfig(architecture=family.architecture, **fields)
    except ValueError as error:
        raise PipelineError(f"this {family.name} is not covered: {error}") from error
    model = make_model(config)
    state = to_ours(family.links(config), tensors, model.state_dict(), family.computed)
    model.load_state_dict(state)
    return model.eval()


def why_not(model_type: str, class_name: str) -> str:
    """What to say of a class that is none of the families'."""
    reasons = {"modernbert": " (its layers see all of the text and a window by turns; ours all do the same)"}
    covered = ", ".join(sorted({family.model_class for family in FAMILIES}))
    return f"{class_name} ({model_type}) is not covered{reasons.get(model_type, '')}: there are {covered}"


def _special_ids(theirs: Any) -> dict[str, int]:
    """pad_id, bos_id (what the decoder reads first) and eos_id, from the configuration."""

    def named(name: str) -> int | None:
        value = getattr(theirs.config, name, None)
        if value is None:
            value = getattr(getattr(theirs, "generation_config", None), name, None)
        return value[0] if isinstance(value, list) else value  # of several ends, the first

    eos, pad = named("eos_token_id"), named("pad_token_id")
    start = named("decoder_start_token_id") if theirs.config.is_encoder_decoder else None
    bos = next((n for n in (start, named("bos_token_id"), eos, pad) if n is not None), 0)
    eos = bos if eos is None else eos
    return {"pad_id": eos if pad is None else pad, "bos_id": bos, "eos_id": eos}
