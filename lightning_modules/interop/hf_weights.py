"""Which of our tensors is which of Hugging Face's, one table for both directions. Costs a copy of the weights.

Nothing is computed on the way: a tensor is cut, joined or transposed, so going there and back gives the same bits. What
one side has and the other leaves out (a bias of zero, a segment vector of zero) is written as zeros, and accepted from
the other side only where it is zero; every tensor is accounted for, so that none is dropped unseen.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.errors import PipelineError

Tensors = Mapping[str, Tensor]
_MAY_BE_LEFT_OUT = (".bias", "head.bias_V", "types.weight")  # of ours: they are added, so none is zero


@dataclass(frozen=True)
class Link:
    """Our tensors, joined along their rows, are theirs, joined along theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    copies: tuple[str, ...] = ()  # more names under which they keep the same tensor
    transposed: bool = False  # GPT-2's matrices are (in, out), ours (out, in)
    unread: int = 0  # first rows of theirs that their code never reads; written as zeros


def layer(ours: str | tuple[str, ...], theirs: str | tuple[str, ...], bias: bool = True, **options: bool) -> list[Link]:
    """The links of a linear layer or normalisation, several fused ones together: its weight and, if asked, its bias."""
    us, them = ((names,) if isinstance(names, str) else names for names in (ours, theirs))
    kinds = ("weight", "bias") if bias else ("weight",)
    return [
        Link(tuple(f"{name}.{kind}" for name in us), tuple(f"{name}.{kind}" for name in them), **options)  # type: ignore[arg-type]
        for kind in kinds
    ]


def to_theirs(links: Iterable[Link], ours: Tensors, shapes: Tensors) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes, which `shapes` has."""
    found: dict[str, Tensor] = {}
    for link in links:
        if all(name in ours for name in link.ours):
            whole = torch.cat([ours[name] for name in link.ours])
            whole = whole.t() if link.transposed else whole
            whole = torch.cat([whole.new_zeros(link.unread, *whole.shape[1:]), whole])
            found |= _cut(whole, link.theirs, shapes)
        else:
            assert link.ours[0].endswith(_MAY_BE_LEFT_OUT), link.ours
            found |= {name: torch.zeros_like(shapes[name]) for name in link.theirs}
        found |= dict.fromkeys(link.copies, found[link.theirs[0]])
    return found


def to_ours(
    links: Iterable[Link], theirs: Tensors, shapes: Tensors, computed: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes. Tensors for whose names `computed` is true follow from others.

    Raises PipelineError where theirs hold something that ours cannot.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for link in links:
        used |= {*link.theirs, *link.copies}
        for name in link.copies:
            if not torch.equal(theirs[name], theirs[link.theirs[0]]):
                raise PipelineError(f"{name} and {link.theirs[0]} differ: ours are one and the same")
        whole = torch.cat([theirs[name] for name in link.theirs])[link.unread :]
        if all(name in shapes for name in link.ours):
            found |= _cut(whole.t() if link.transposed else whole, link.ours, shapes)
        elif whole.any():
            raise PipelineError(f"{link.theirs[0]} is not zero, and our configuration has no place for it")
    left = [name for name in theirs if name not in used and not computed(name)]
    if left:
        raise PipelineError(f"{left[0]} (of {len(left)} such tensors) is nothing that our parts compute with")
    return found


def _cut(whole: Tensor, names: tuple[str, ...], shapes: Tensors) -> dict[str, Tensor]:
    if len(names) == 1:
        return {names[0]: whole.reshape(shapes[names[0]].shape).contiguous()}
    parts: tuple[Tensor, ...] = torch.split(whole, [len(shapes[name]) for name in names])
    return {name: part.contiguous() for name, part in zip(names, parts, strict=True)}
