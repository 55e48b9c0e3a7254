"""Who influences whom through a stack, found by gradients; documents packed into a row against each by itself; blocks
computed twice rather than kept."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from tiny import VOCAB_SIZE, batch_for, model
from torch import Tensor

from lightning_modules.loss import batch_loss
from lightning_modules.transformer.config import Positions
from lightning_modules.transformer.stack import recompute_activations

SCHEMES = get_args(Positions)
FIRST_FALSE = torch.arange(8) >= torch.tensor([[0], [3]])  # as a decoder's source is padded
LAST_FALSE = torch.arange(8) < torch.tensor([[8], [5]])
DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3], [4, 4, 4, 4, 4, 5, 0, 0]])
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "padding first": {"real_BS": FIRST_FALSE},
    "padding last": {"real_BS": LAST_FALSE},
    "documents": {"documents_BL": DOCUMENTS},
    "documents and padding": {"documents_BL": DOCUMENTS, "real_BS": DOCUMENTS != 0},
    "a prefix": {"prefix": 4},
    "a padded prefix": {"prefix": 4, "real_BS": FIRST_FALSE},
}


def one_layer(architecture: str, **changes: Any) -> Any:
    """A stack of one layer, in which what a vector sees is what changes it."""
    made = model(architecture=architecture, encoder_layers=1, decoder_layers=1, **changes).double()
    return made.encoder if architecture == "encoder" else made.decoder


def influence(stack: Any, **given: Any) -> Tensor:
    """(B, L, S), true where the output at l changes with the input at s."""
    torch.manual_seed(1)
    x_BLD = torch.randn(2, 8, 32, dtype=torch.float64, requires_grad=True)
    out_BLD = stack(x_BLD, **given)
    weighting_BD, rows = torch.randn(2, 32, dtype=torch.float64), []
    for position in range(8):
        (gradient,) = torch.autograd.grad((out_BLD[:, position] * weighting_BD).sum(), x_BLD, retain_graph=True)
        rows.append(gradient.abs().amax(-1) > 0)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("positions", ["rotary", "relative"])  # without scores of its own, and with
@pytest.mark.parametrize(
    ("architecture", "case"),
    [(a, c) for a in ("encoder", "decoder") for c in CASES if a == "decoder" or "prefix" not in c],
)
def test_a_vector_changes_with_those_it_may_see_and_no_other(
    architecture: str, case: str, positions: str, window: int | None
) -> None:
    given, causal = CASES[case], architecture == "decoder"
    got = influence(one_layer(architecture, positions=positions, window=window), **given)
    real, documents, prefix = given.get("real_BS"), given.get("documents_BL"), given.get("prefix", 0)
    for row in range(2):
        for query in range(8):
            for key in range(8):
                expected = (
                    (not causal or key <= query or key < prefix)
                    and (window is None or abs(query - key) < window)
                    and (real is None or bool(real[row, key]))
                    and (documents is None or bool(documents[row, query] == documents[row, key]))
                )
                assert bool(got[row, query, key]) == (expected or query == key), (row, query, key)


@pytest.mark.parametrize(
    "changes", [{}, {"norm": "post", "window": 3}, {"key_value_heads": 2, "qk_norm": True}], ids=str
)
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize(
    ("architecture", "case"),
    [(a, c) for a in ("encoder", "decoder") for c in CASES if a == "decoder" or "prefix" not in c],
)
def test_columns_asked_for_are_those_of_the_whole_with_their_gradients(
    architecture: str, case: str, positions: str, changes: dict[str, Any]
) -> None:
    ours = model(architecture=architecture, positions=positions, **changes).double()
    stack = ours.encoder if architecture == "encoder" else ours.decoder
    torch.manual_seed(1)
    x_BLD = torch.randn(2, 8, 32, dtype=torch.float64, requires_grad=True)
    columns_BM = torch.tensor([[7, 3, 5], [4, 4, 3]])  # none of them padding
    asked_BMD = stack(x_BLD, **CASES[case], columns_BM=columns_BM)
    whole_BMD = stack(x_BLD, **CASES[case])[torch.arange(2)[:, None], columns_BM]
    torch.testing.assert_close(asked_BMD, whole_BMD)
    learning = [x_BLD, *stack.parameters()]
    slopes = [torch.autograd.grad((out**3).sum(), learning) for out in (asked_BMD, whole_BMD)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def packed(seed: int, rows: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """Random ids (B, L) and the number of the document of each; what is left of a row is padding, numbered 0."""
    torch.manual_seed(seed)
    ids, documents = torch.zeros(2, len(rows), length, dtype=torch.long)
    for row, lengths in enumerate(rows):
        end = sum(lengths)
        ids[row, :end] = torch.randint(5, VOCAB_SIZE, (end,))
        documents[row, :end] = torch.repeat_interleave(torch.arange(len(lengths)) + 1, torch.tensor(lengths))
    return ids, documents


SOURCE, SOURCE_DOCUMENTS = packed(1, [[5, 3, 4], [1, 7], [2, 2, 2]], 12)
TARGET, TARGET_DOCUMENTS = packed(2, [[2, 4, 3], [6, 2], [1, 5, 3]], 10)
OPTIONS: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"window": 3}, True),
    ({"key_value_heads": 2, "qk_norm": True, "norm": "post"}, False),
]


def hidden_of_packed(made: Any, with_real: bool) -> tuple[Tensor, Tensor]:
    """Hidden vectors of packed rows, and the documents that they belong to."""
    real = SOURCE != 0 if with_real else None
    if made.config.architecture == "encoder":
        return made(SOURCE, real, SOURCE_DOCUMENTS), SOURCE_DOCUMENTS
    if made.config.architecture == "decoder":
        return made(SOURCE[:, :0], SOURCE, documents_BL=SOURCE_DOCUMENTS), SOURCE_DOCUMENTS
    return made(SOURCE, TARGET, real, (SOURCE_DOCUMENTS, TARGET_DOCUMENTS)), TARGET_DOCUMENTS


def hidden_alone(made: Any, row: int, document: int) -> Tensor:
    source = SOURCE[row, SOURCE_DOCUMENTS[row] == document][None]
    if made.config.architecture == "encoder":
        return made(source)[0]
    if made.config.architecture == "decoder":
        return made(source[:, :0], source)[0]
    return made(source, TARGET[row, TARGET_DOCUMENTS[row] == document][None])[0]


@pytest.mark.parametrize(("changes", "with_real"), OPTIONS)
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_a_document_is_read_in_a_packed_row_as_by_itself(
    architecture: str, positions: str, changes: dict[str, Any], with_real: bool
) -> None:
    made = model(3, architecture=architecture, positions=positions, max_length=12, **changes)
    with torch.no_grad():
        hidden, documents = hidden_of_packed(made, with_real)
        assert hidden.isfinite().all()
        for row in range(3):
            for document in range(1, int(documents[row].max()) + 1):
                alone = hidden_alone(made, row, document)
                torch.testing.assert_close(hidden[row, documents[row] == document], alone, atol=2e-5, rtol=1e-5)


def test_a_decoder_packs_across_source_and_target() -> None:
    made = model(3, architecture="decoder")
    whole, _ = hidden_of_packed(made, with_real=False)
    part = made(SOURCE[:, :5], SOURCE[:, 5:], documents_BL=SOURCE_DOCUMENTS)
    torch.testing.assert_close(part, whole[:, 5:])


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_without_their_numbers_documents_do_disturb_each_other(architecture: str) -> None:
    """Else the tests above would hold for a model that reads nothing but the token itself."""
    made = model(3, architecture=architecture)
    hidden, documents = hidden_of_packed(made, with_real=True)
    inputs = {"encoder": (SOURCE,), "decoder": (SOURCE[:, :0], SOURCE), "encoder_decoder": (SOURCE, TARGET)}
    assert (
        not torch.isclose(made(*inputs[architecture])[documents == 2], hidden[documents == 2], atol=1e-3).all(-1).any()
    )


def stacks_of(made: Any) -> list[Any]:
    return [getattr(made, name) for name in ("encoder", "decoder") if hasattr(made, name)]


@pytest.mark.parametrize("with_real", [False, True])
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("encoder", {"window": 3}),
        ("encoder", {}),
        ("decoder", {"key_value_heads": 2, "qk_norm": True, "scale_attention": False}),
        ("decoder", {"window": 2}),
        ("encoder_decoder", {}),
    ],
)
def test_packed_rows_document_by_document_are_the_same_with_their_gradients(
    architecture: str, positions: str, changes: dict[str, Any], with_real: bool
) -> None:
    made = model(3, architecture=architecture, positions=positions, max_length=12, **changes).double()

    def step(way: str) -> tuple[Tensor, list[Tensor]]:
        for stack in stacks_of(made):
            stack.packs_with = way
        hidden, documents = hidden_of_packed(made, with_real)
        torch.manual_seed(4)
        loss = (hidden * torch.randn_like(hidden))[documents != 0].sum()
        return hidden[documents != 0], list(torch.autograd.grad(loss, made.parameters(), allow_unused=True))

    (masked, masked_gradients), (apart, apart_gradients) = step("mask"), step("apart")
    torch.testing.assert_close(apart, masked)
    torch.testing.assert_close(apart_gradients, masked_gradients)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("encoder", {"window": 3}),
        ("decoder", {"key_value_heads": 2, "qk_norm": True, "scale_attention": False}),
        ("encoder_decoder", {}),
    ],
)
def test_packed_rows_by_flex_attention_are_the_same(architecture: str, positions: str, changes: dict[str, Any]) -> None:
    """Its gradient exists on GPUs alone."""
    made = model(3, architecture=architecture, positions=positions, max_length=12, **changes)
    stacks = stacks_of(made)
    used: list[bool] = []
    for stack in stacks:
        stack.blocks[0].register_forward_pre_hook(lambda _, inputs: used.append(inputs[1].blocks is not None))
    with torch.no_grad():
        dense, documents = hidden_of_packed(made, with_real=False)
        for stack in stacks:
            stack.packs_with = "flex"
        flexed, _ = hidden_of_packed(made, with_real=False)
    torch.testing.assert_close(flexed[documents != 0], dense[documents != 0], atol=1e-5, rtol=1e-5)
    assert flexed.isfinite().all()
    assert used == [False] * len(stacks) + [True] * len(stacks)


def trained(made: Any, recompute: bool) -> tuple[Tensor, list[Tensor], int]:
    """A step's loss, its gradients, and the bytes kept for them."""
    recompute_activations(made.train(), recompute)
    own = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    torch.manual_seed(5)
    made.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = batch_loss(made, batch_for(made, 1, [20, 9, 14], [20, 16, 11]), 0.1)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in made.parameters()]
    return loss, gradients, sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


MODERN: dict[str, Any] = {"norm_type": "rms", "activation": "swiglu", "qk_norm": True, "key_value_heads": 2}


@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize(
    ("architecture", "changes"), [("encoder", {}), ("decoder", MODERN), ("encoder_decoder", {"attention_dropout": 0.1})]
)
def test_blocks_computed_again_give_the_same_bits_and_keep_less(
    architecture: str, changes: dict[str, Any], positions: str
) -> None:
    made = model(architecture=architecture, positions=positions, dropout=0.2, **changes)
    loss, gradients, kept = trained(made, recompute=False)
    again_loss, again_gradients, again_kept = trained(made, recompute=True)
    assert torch.equal(loss, again_loss)
    for one, other in zip(gradients, again_gradients, strict=True):
        assert torch.equal(one, other)
    assert again_kept < kept / 2


def test_what_is_kept_grows_with_depth_by_one_vector_a_position() -> None:
    kept = [
        trained(model(architecture="encoder", encoder_layers=layers, dropout=0.1), recompute=True)[2]
        for layers in (2, 6, 10)
    ]
    assert kept[2] - kept[1] == kept[1] - kept[0] == pytest.approx(4 * 3 * 20 * 32 * 4, rel=0.2)


def test_decoding_computes_nothing_again() -> None:
    made = model(architecture="decoder")
    recompute_activations(made.train(), True)
    state = made.begin(SOURCE[:, :5])
    steps = torch.cat([made.step(SOURCE[:, 5:9], state), made.step(SOURCE[:, 9:], state)], dim=1)
    torch.testing.assert_close(steps, made(SOURCE[:, :5], SOURCE[:, 5:]), atol=1e-5, rtol=1e-5)
