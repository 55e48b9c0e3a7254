"""Families of published architectures: which of our configurations each computes, and how the two are written down.

A family is data: values of our fields that it can compute, values of its own fields that we can, a translation of the
configuration in each direction, and links between the weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_modules.errors import PipelineError
from lightning_modules.interop.hf_weights import Link
from lightning_modules.transformer.config import Architecture, TransformerConfig

Allowed = dict[str, tuple[Any, ...]]

ANY: tuple[Any, ...] = ("any",)
# What no family computes unless it says otherwise.
_COMMON: Allowed = {
    "embeddings": ("tokens",),
    "token_types": (0,),
    "key_value_heads": (None,),
    "head_width": (None,),
    "scale_attention": (True,),
    "qk_norm": (False,),
    "window": (None,),
    "bidirectional_prefix": (False,),
    "scale_logits": (False,),
    "output_transform": (False,),
}
# Ours → the names of Hugging Face's table of activations; gated ones are named by each family.
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "relu2": "relu2"}
_OTHER_NAMES = {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}


def _nothing(name: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Family:
    """One of Hugging Face's architectures, beside ours."""

    name: str
    architecture: Architecture
    config_class: str
    model_class: str
    auto_class: str  # what loads it by its configuration alone
    computes: Allowed  # our fields that are not free in it → the values it computes
    reads: Allowed  # its fields that change what it computes → the values that we compute
    to_theirs: Callable[[TransformerConfig], dict[str, Any]]
    to_ours: Callable[[Any, Mapping[str, Any]], dict[str, Any]]  # their configuration and tensors → our fields
    links: Callable[[TransformerConfig], list[Link]]
    computed: Callable[[str], bool] = field(default=_nothing)  # names of their tensors that hold nothing learned
    initialization: str = "normal"  # how our parts draw fresh weights for it

    def misfits(self, config: TransformerConfig) -> list[str]:
        """Names of our fields whose values this family does not compute."""
        values = asdict(config)
        values["key_value_heads"] = None if config.groups == config.heads else config.groups
        values["head_width"] = None if config.width_of_heads * config.heads == config.d_model else config.head_width
        allowed = _COMMON | self.computes
        return [name for name, good in allowed.items() if good is not ANY and values[name] not in good]

    def fixed(self) -> dict[str, Any]:
        """Our fields that have the same value in every model of this family."""
        allowed = _COMMON | self.computes
        return {name: good[0] for name, good in allowed.items() if good is not ANY and len(good) == 1}


def choose(config: TransformerConfig, families: list[Family]) -> Family:
    """The family that computes what `config` says. Raises PipelineError, naming the fields at fault, if none does."""
    candidates = [family for family in families if family.architecture == config.architecture]
    by_misfit = sorted(candidates, key=lambda family: len(family.misfits(config)))
    nearest, wrong = by_misfit[0], by_misfit[0].misfits(config)
    if not wrong:
        return nearest
    names = ", ".join(family.name for family in candidates)
    nowhere = [name for name in wrong if all(name in family.misfits(config) for family in candidates)]
    if nowhere:
        told = ", ".join(f"{name} {_said(getattr(config, name))}" for name in nowhere)
        raise PipelineError(f"{told}: no Hugging Face family among {names} computes this")
    computes = _COMMON | nearest.computes
    told = ", ".join(
        f"{name} {_said(getattr(config, name))} (there: {' or '.join(_said(value) for value in computes[name])})"
        for name in wrong
    )
    raise PipelineError(
        f"{told}: the nearest Hugging Face family among {names} is {nearest.name}, which computes it otherwise"
    )


def check_readable(family: Family, theirs: Any) -> None:
    """Raises PipelineError where a published configuration asks for something that our parts do not compute."""
    for name, good in family.reads.items():
        value = getattr(theirs, name, good[0])
        if value not in good:
            told = " or ".join(_said(allowed) for allowed in good)
            raise PipelineError(f"{family.name} with {name} {_said(value)} is not covered: our parts compute {told}")


def our_activation(name: str, names: Mapping[str, str] = ACTIVATIONS) -> str:
    """Our name of one of Hugging Face's activations. Raises PipelineError for one that we do not have."""
    known = {theirs: ours for ours, theirs in names.items()} | _OTHER_NAMES
    if name not in known:
        raise PipelineError(f"activation {name} is not covered: ours are {', '.join(known)}")
    return known[name]


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)
