"""softmax(Q·Kᵀ/√K + mask)·V as it is written, with all weights in memory, where the fused kernels have none.

For looking at weights, and for learning in bfloat16 on CPUs with matrix units (AMX): products take next to no time
there, while torch's fused gradient pays for each head and block of 32 queries, several times as much in all
(`python -m benchmarks.attention --bf16`). Costs two bytes for each pair of tokens, head and layer until the backward
pass, and bits: scores are rounded before the softmax, so that gradients are off by less than 1 %, which is up to 2.5
times as much as the fused ones (tests/test_plain_attention.py).
"""

import torch
from torch import Tensor

from lightning_modules.transformer import matrix_units
from lightning_modules.transformer.gradients import learns

MOST_PAIRS = 2**18  # of query and key: 512 × 512. With 1,024 × 1,024 neither way is faster


def is_faster(x: Tensor, queries: int, keys: int) -> bool:
    """Whether x learns faster this way, where it is one of many batches of this shape: the first costs milliseconds."""
    return queries * keys <= MOST_PAIRS and learns(x) and matrix_units.multiply(x)


def weights(q_BHLK: Tensor, k_BHSK: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """(B, H, L, S): where each query looks; nowhere, if all keys are hidden from it.

    `mask`, broadcast, is true where a query may see a key, or is added to the scores; with `causal`, which hides the
    future, there is none. `scale` is 1/√K unless told. Keys may have fewer heads, each for a group of the queries'.
    """
    batch, heads, queries, width = q_BHLK.shape
    keys, dtype = k_BHSK.shape[2], q_BHLK.dtype
    k_BHSK = _for_each_head(k_BHSK, heads)
    sees_none: Tensor | None = None  # (…, L, 1)
    if causal:
        mask = q_BHLK.new_full((queries, keys), float("-inf")).triu(1)
    elif mask is None:
        mask = q_BHLK.new_zeros(())
    else:
        allowed = mask if mask.dtype == torch.bool else mask > float("-inf")
        if mask is allowed:
            mask = q_BHLK.new_zeros(mask.shape).masked_fill_(~allowed, float("-inf"))
        none = allowed.view(torch.uint8).amax(dim=-1, keepdim=True) == 0  # any() takes a hundred times as long
        if none.any():
            sees_none, mask = none, mask.masked_fill(none, 0.0)
    q_NLK, k_NSK = q_BHLK.reshape(-1, queries, width), k_BHSK.reshape(-1, keys, width)
    mask_NLS = mask.to(dtype).expand(batch, heads, queries, keys).reshape(-1, queries, keys)
    score_NLS = torch.baddbmm(mask_NLS, q_NLK, k_NSK.mT, alpha=width**-0.5 if scale is None else scale)
    weight_BHLS = score_NLS.softmax(dim=-1, dtype=dtype).view(batch, heads, queries, keys)
    return weight_BHLS if sees_none is None else weight_BHLS.masked_fill(sees_none, 0.0)


def attention(
    q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """(B, H, L, K): what each query finds where it looks, in the values' precision."""
    dtype = v_BHSK.dtype  # where queries and keys were normalised under autocast, theirs is higher
    weight_BHLS = weights(q_BHLK.to(dtype), k_BHSK.to(dtype), mask, causal, scale)
    return weight_BHLS @ _for_each_head(v_BHSK, weight_BHLS.shape[1])


def _for_each_head(x_BGSK: Tensor, heads: int) -> Tensor:
    groups = x_BGSK.shape[1]
    return x_BGSK if groups == heads else x_BGSK.repeat_interleave(heads // groups, dim=1)
