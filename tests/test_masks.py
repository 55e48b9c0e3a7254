"""Who sees whom, against a loop that asks each pair."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.transformer.masks import Visibility, may_see

CPU = torch.device("cpu")
ROWS = 2


@st.composite
def options(draw: st.DrawFn) -> dict[str, object]:
    keys = draw(st.integers(1, 9))
    queries = draw(st.integers(1, keys))

    def flags(count: int) -> torch.Tensor:
        return torch.tensor([draw(st.lists(st.booleans(), min_size=count, max_size=count)) for _ in range(ROWS)])

    def numbers(count: int) -> torch.Tensor:
        each = st.lists(st.integers(0, 2), min_size=count, max_size=count)
        return torch.tensor([draw(each) for _ in range(ROWS)])

    return {
        "queries": queries,
        "keys": keys,
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 10)),
        "real_BS": draw(st.sampled_from([None, flags(keys)])),
        "prefix": draw(st.integers(0, keys)),
        "documents": draw(st.sampled_from([None, (numbers(queries), numbers(keys))])),
    }


@given(options())
def test_a_pair_may_see_each_other_where_no_rule_forbids_it(chosen: dict[str, object]) -> None:
    queries, keys = chosen.pop("queries"), chosen.pop("keys")
    assert isinstance(queries, int)
    assert isinstance(keys, int)
    got = may_see(queries, keys, CPU, **chosen)  # type: ignore[arg-type]
    causal, window, real, prefix, documents = chosen.values()
    if got is None:
        assert not causal
        assert window is real is documents is None
        return
    assert got.dtype == torch.bool
    allowed = got.expand(ROWS, 1, queries, keys)
    for row in range(ROWS):
        for query in range(queries):
            for key in range(keys):
                at = keys - queries + query  # the column of the query among those of the keys
                expected = True
                if causal and key > at and key >= prefix:  # type: ignore[operator]
                    expected = False
                if window is not None and abs(at - key) >= window:  # type: ignore[operator]
                    expected = False
                if real is not None and not real[row, key]:  # type: ignore[index]
                    expected = False
                if documents is not None and documents[0][row, query] != documents[1][row, key]:  # type: ignore[index]
                    expected = False
                assert bool(allowed[row, 0, query, key]) == expected


def test_there_is_no_mask_where_nothing_is_hidden() -> None:
    assert may_see(3, 5, CPU) is None
    assert Visibility().score_mask is None


def test_a_target_may_be_longer_than_the_source_that_it_sees() -> None:
    documents = (torch.tensor([[1, 1, 2, 2, 0]]), torch.tensor([[1, 2]]))
    allowed = may_see(5, 2, CPU, real_BS=torch.tensor([[True, True]]), documents=documents)
    assert allowed is not None
    assert allowed[0, 0].int().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_what_the_kernel_is_given(masked: bool, biased: bool) -> None:
    allowed = torch.tensor([[True, False], [True, True]])[None, None] if masked else None
    bias = torch.randn(1, 3, 2, 2, requires_grad=True) if biased else None
    given = Visibility(allowed, bias).score_mask
    if not biased:
        assert given is allowed
        return
    assert given is not None
    assert bias is not None
    hidden = torch.tensor([[False, masked], [False, False]]).expand(1, 3, 2, 2)
    assert (given[hidden] == float("-inf")).all()
    assert torch.equal(given[~hidden], bias[~hidden])
    given[~hidden].sum().backward()
    assert bias.grad is not None
    assert torch.equal(bias.grad, (~hidden).float())
