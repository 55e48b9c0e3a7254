"""Tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053, section 3): each rank has its share of every layer.

Attention is split by heads, the feed-forward by its inner columns, embeddings and head by entries of the vocabulary;
normalisations and positions are whole on every rank. All ranks of a group read the same batch and draw the same
dropout. Costs two sums over the group for each attention and each feed-forward (one forward, one backward), over
tensors as large as their input; logits are never gathered.

The model knows nothing of it: its layers are given fewer heads and columns, and those that end a split part add up.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.errors import PipelineError
from lightning_modules.transformer.attention import Attention
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.embeddings import TokenEmbedding
from lightning_modules.transformer.layers import FeedForward, OutputHead
from lightning_modules.transformer.positions import AlibiBias, RelativeBias

Group = dist.ProcessGroup


class Split(NamedTuple):
    """How a tensor is dealt out: along `dim`, each of the `parts` that lie in it one upon the other by itself."""

    dim: int
    parts: int = 1

    def share(self, whole: Tensor, rank: int, ranks: int) -> Tensor:
        """The share of one rank, in memory of its own."""
        own = [part.tensor_split(ranks, self.dim)[rank] for part in whole.chunk(self.parts, self.dim)]
        return torch.cat(own, self.dim).contiguous()

    def join(self, own: Tensor, group: Group) -> Tensor:
        """The shares of all ranks → the whole, on each of them. All must call it."""
        ranks = dist.get_world_size(group)
        sizes = torch.zeros(ranks, dtype=torch.long, device=own.device)
        sizes[dist.get_rank(group)] = own.shape[self.dim]
        dist.all_reduce(sizes, group=group)
        longest = int(sizes.max())
        first = own.transpose(0, self.dim)
        padded = torch.cat([first, first.new_zeros(longest - len(first), *first.shape[1:])]).contiguous()
        shares = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(shares, padded, group=group)
        parts = [share[:size].chunk(self.parts) for share, size in zip(shares, sizes.tolist(), strict=True)]
        return torch.cat([share for part in zip(*parts, strict=True) for share in part]).transpose(0, self.dim)


def require_divisible(config: TransformerConfig, ranks: int) -> None:
    """Raises PipelineError where heads or columns cannot be dealt out evenly to so many ranks."""
    for name, count in (("heads", config.heads), ("key_value_heads", config.groups), ("d_ff", config.d_ff)):
        if count % ranks:
            raise PipelineError(
                f"strategy tensor_parallel: {ranks} devices do not divide model.{name} ({count}): use as many as do, "
                "or strategy fsdp"
            )


def split_model(model: nn.Module, config: TransformerConfig, group: Group) -> None:
    """Keeps of a whole model, the same on every rank, what is this rank's own. In place."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    for module in list(model.modules()):
        _connect(module, group, config.vocab_size)
    for name, split in splits(model).items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        whole = getattr(owner, leaf)
        own = split.share(whole.detach(), rank, ranks)
        setattr(owner, leaf, nn.Parameter(own, whole.requires_grad) if isinstance(whole, nn.Parameter) else own)


def splits(model: nn.Module) -> dict[str, Split]:
    """The split parameters and buffers by name, whether the model has been split already or not."""
    return {
        f"{path}.{name}" if path else name: split
        for path, module in model.named_modules()
        for name, split in _splits(module)
    }


def group_of(model: nn.Module) -> Group | None:
    """The ranks that a model has been split over; None where it is whole."""
    return next((module.group for module in model.modules() if isinstance(module, _Sharing)), None)


def _splits(module: nn.Module) -> Iterator[tuple[str, Split]]:
    columns: dict[str, int] = {}  # layers whose outputs are dealt out, and how many lie in each one upon the other
    rows: tuple[str, ...] = ()  # layers whose inputs are
    if isinstance(module, Attention):
        columns, rows = {"query": 1, "key_value": 2}, ("output",)
    elif isinstance(module, FeedForward):
        columns, rows = {"inner": 2 if module.gated else 1}, ("outer",)
    elif isinstance(module, TokenEmbedding | OutputHead):
        yield from ((name, Split(0)) for name, _ in module.named_parameters(recurse=False))
    elif isinstance(module, RelativeBias):
        yield "weight_NH", Split(1)
    elif isinstance(module, AlibiBias):
        yield "slope_H", Split(0)
    for layer, parts in columns.items():
        for name, _ in module.get_submodule(layer).named_parameters():
            yield f"{layer}.{name}", Split(0, parts)
    yield from ((f"{layer}.weight", Split(1)) for layer in rows)


def _connect(module: nn.Module, group: Group, entries: int) -> None:
    """Makes a layer whose weights are a share of the whole do its share of the work."""

    def become(layer: nn.Module, kind: type[_Sharing]) -> None:
        layer.__class__ = kind
        cast(_Sharing, layer).group, cast(_Sharing, layer).entries = group, entries

    def spread(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The inputs of a split layer, to which each rank's gradient is a share."""
        memory_BSD = kwargs.get("memory_BSD")
        if memory_BSD is not None:
            kwargs = kwargs | {"memory_BSD": _spread(memory_BSD, group)}
        return (_spread(args[0], group), *args[1:]), kwargs

    if isinstance(module, Attention):
        ranks = dist.get_world_size(group)
        module.heads, module.groups = module.heads // ranks, module.groups // ranks
        become(module.output, _SummedLinear)
        for norm in (module.query_norm, module.key_norm):
            if norm is not None:
                become(norm, _SharedNorm)
        module.register_forward_pre_hook(spread, with_kwargs=True)
    elif isinstance(module, FeedForward):
        become(module.outer, _SummedLinear)
        module.register_forward_pre_hook(spread, with_kwargs=True)
    elif isinstance(module, TokenEmbedding):
        become(module, _SummedEmbedding)
    elif isinstance(module, OutputHead):
        become(module, _SplitHead)


class _Sharing(nn.Module):
    """A layer that knows whom it shares its work with."""

    group: Group
    entries: int  # of the vocabulary


class _SplitHead(OutputHead, _Sharing):
    """Scores this rank's part of the vocabulary."""

    def cross_entropy(
        self, hidden_ND: Tensor, embedding_VD: Tensor | None, target_N: Tensor, label_smoothing: float
    ) -> Tensor:
        """Of the scores of all ranks. Three numbers a position go over the wire, a fourth where labels are smoothed."""
        logits_NV, group, first = self(hidden_ND, embedding_VD).float(), self.group, _first(self.entries, self.group)
        own_N = logits_NV.logsumexp(dim=-1)
        greatest_N = own_N.detach().clone()
        dist.all_reduce(greatest_N, dist.ReduceOp.MAX, group=group)
        whole_N = greatest_N + _sum((own_N - greatest_N).exp(), group).log()
        here_N = (target_N >= first) & (target_N < first + logits_NV.shape[1])
        column_N1 = (target_N - first).where(here_N, 0)[:, None]
        loss_N = whole_N - _sum(logits_NV.gather(1, column_N1)[:, 0] * here_N, group)
        if label_smoothing:
            evenly_N = whole_N - _sum(logits_NV.sum(dim=-1), group) / self.entries
            loss_N = loss_N.lerp(evenly_N, label_smoothing)
        return loss_N.sum()

    def _factors(self, hidden_ND: Tensor, embedding_VD: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden_ND, weight_VD = super()._factors(hidden_ND, embedding_VD)
        return _spread(hidden_ND, self.group), weight_VD


class _SummedLinear(nn.Linear, _Sharing):
    """Ends a split part: the ranks' products are added up, and the bias once to their sum."""

    def forward(self, x_BLF: Tensor) -> Tensor:
        out_BLD = _sum(functional.linear(x_BLF, self.weight), self.group)
        return out_BLD if self.bias is None else out_BLD + self.bias.to(out_BLD.dtype)


class _SummedEmbedding(TokenEmbedding, _Sharing):
    """Looks up what is this rank's own, zeros elsewhere; the sum has all."""

    def forward(self, ids_BL: Tensor) -> Tensor:
        first = _first(self.entries, self.group)
        here_BL = (ids_BL >= first) & (ids_BL < first + len(self.weight_VD))
        own_BLD = functional.embedding((ids_BL - first).where(here_BL, 0), self.weight_VD)
        return _sum(own_BLD * here_BL[..., None], self.group)


class _SharedNorm(nn.RMSNorm, _Sharing):
    """A norm of heads: its weight, whole on each rank, gets its gradient from the heads of all."""

    def forward(self, x_BHLK: Tensor) -> Tensor:
        weight_K = _spread(self.weight, self.group)
        return functional.rms_norm(x_BHLK, self.normalized_shape, weight_K, self.eps)


class _Spread(torch.autograd.Function):
    """Each rank's copy of what all have; the gradient is the sum of theirs. Megatron's f."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _summed(gradient, ctx.group), None


class _Sum(torch.autograd.Function):
    """The sum over ranks; the gradient of what all of them have then is the same on each. Megatron's g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def _spread(x: Tensor, group: Group) -> Tensor:
    return _Spread.apply(x, group)  # type: ignore[no-any-return, no-untyped-call]


def _sum(x: Tensor, group: Group) -> Tensor:
    return _Sum.apply(x, group)  # type: ignore[no-any-return, no-untyped-call]


def _summed(x: Tensor, group: Group) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _first(entries: int, group: Group) -> int:
    """The first entry of the vocabulary that is this rank's own, as `tensor_split` deals them out."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    return rank * (entries // ranks) + min(rank, entries % ranks)
