"""Documents laid side by side against one mask for all: random rows, documents without keys, columns of no document."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.transformer.apart import apart
from lightning_modules.transformer.masks import Visibility, may_see

ROWS, HEADS, WIDTH = 3, 2, 4


def attend(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=visibility.allowed_BHLS, is_causal=visibility.causal
    )


def numbers(columns: int, documents: int) -> Tensor:
    """Rows that each have some of the documents, in order."""
    return torch.randint(documents, (ROWS, columns)).sort(dim=1).values


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("columns", [(9, 9), (70, 150), (150, 40)])
def test_attention_to_other_columns_is_that_of_a_mask(columns: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    queries, keys = columns
    # As of a prefix and its continuation: either side may have documents of higher numbers than the other.
    of_queries, of_keys = numbers(queries, 7 - seed % 3), numbers(keys, 5 + seed % 3)
    real = torch.arange(keys) < torch.tensor([[keys], [keys - 3], [keys // 2]])
    given = [
        torch.randn(ROWS, HEADS, length, WIDTH, dtype=torch.double, requires_grad=True)
        for length in (queries, keys, keys)
    ]
    allowed = may_see(queries, keys, real.device, real_BS=real, documents=(of_queries, of_keys))
    assert allowed is not None
    assert not allowed.any(dim=-1).all(), "some query has no key"
    expected = attend(*given, Visibility(allowed))
    groups = apart(
        of_queries,
        of_keys,
        None,
        real,
        lambda queries, keys, real: Visibility(may_see(queries, keys, torch.device("cpu"), real_BS=real)),
    )
    got = groups.attend(*given, attend)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, given, direction), torch.autograd.grad(expected, given, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_columns_of_no_document_get_zeros_and_no_gradient() -> None:
    torch.manual_seed(1)
    x = torch.randn(ROWS, HEADS, 60, WIDTH, requires_grad=True)
    real = torch.rand(ROWS, 60) < 0.9
    real[0, :50] = False
    documents = numbers(60, 4)
    documents = (documents + 10 * (~real).cumsum(dim=1)).masked_fill(~real, 99)  # what padding parts are two documents
    groups = apart(documents, documents, real, real, lambda queries, keys, real: Visibility(causal=True))
    out = groups.attend(x, x, x, attend)
    assert out.transpose(1, 2)[~real].eq(0).all()
    assert out.transpose(1, 2)[real].ne(0).any(dim=(-1, -2)).all()
    (gradient,) = torch.autograd.grad(out, x, torch.randn_like(out))
    assert gradient.transpose(1, 2)[~real].eq(0).all()
    assert gradient.transpose(1, 2)[real].ne(0).any(dim=(-1, -2)).all()
    assert sum(count for count, _ in groups.queries.lengths) == sum(
        len(row[of].unique()) for row, of in zip(documents, real, strict=True)
    )
