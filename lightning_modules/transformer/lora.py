"""Learning with few weights: the lowest layers frozen, or low-rank updates of frozen matrices (LoRA).

Neither gradients nor averages of the optimiser are kept of what is frozen. A model with updates computes two thin
products more a matrix while it learns; saved with `merged_state` it has none, and costs what it did before.
"""

import torch
from torch import Tensor, nn

from lightning_modules.transformer.attention import Attention
from lightning_modules.transformer.linear import Linear, linear
from lightning_modules.transformer.model import Transformer
from lightning_modules.transformer.stack import Stack


class LoraLinear(Linear):
    """x·(W + B·A)ᵀ + b with A (rank, inputs) and B (outputs, rank), W being frozen.

    Hu et al. 2021, arXiv:2106.09685, section 4.1: A is drawn, B is zero, so that nothing changes at first. The paper's
    factor α/rank is 1 here: it says the same as the learning rate, which is a parameter anyway.
    """

    lora_a_RI: nn.Parameter
    lora_b_OR: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        return super().forward(x) + linear(linear(x, self.lora_a_RI, None), self.lora_b_OR, None)


def add_lora(model: Transformer, rank: int) -> None:
    """Freezes a model, in place, and gives the projections of every attention updates of `rank` that learn.

    Keys and values, one matrix here, share A. Raises ValueError for a rank that is not low.
    """
    if rank >= model.config.d_model:
        raise ValueError(f"a rank of {rank} is not below the model's width, {model.config.d_model}")
    model.requires_grad_(False)
    for attention in [module for module in model.modules() if isinstance(module, Attention)]:
        for layer in (attention.query, attention.key_value, attention.output):
            # The layer stays the module it was, so that weights keep their names.
            layer.__class__ = LoraLinear
            first_RI = torch.randn(rank, layer.in_features) * layer.in_features**-0.5
            layer.register_parameter("lora_a_RI", nn.Parameter(first_RI))
            layer.register_parameter("lora_b_OR", nn.Parameter(torch.zeros(layer.out_features, rank)))


def freeze_lowest(model: Transformer, layers: int) -> None:
    """Freezes the embeddings and the `layers` lowest layers of each stack, in place.

    Raises ValueError where a stack has fewer.
    """
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    fewest = min(len(stack.blocks) for stack in stacks)
    if layers > fewest:
        raise ValueError(f"{layers} layers cannot be frozen in a stack of {fewest}")
    frozen = [model.embedding, getattr(model, "types", None)]
    for stack in stacks:
        frozen += [stack.positions, stack.embedding_norm, *stack.blocks[:layers]]
    for part in frozen:
        if part is not None:
            part.requires_grad_(False)


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's `state_dict` with all updates added to the weights that they belong to: W + B·A."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            prefix = f"{name}." if name else ""
            update_OI = state.pop(f"{prefix}lora_b_OR") @ state.pop(f"{prefix}lora_a_RI")
            state[f"{prefix}weight"] = state[f"{prefix}weight"] + update_OI
    return state
