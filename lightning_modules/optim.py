"""Optimisers and learning-rate schedules: AdamW, Muon, Adafactor; inverse square root, linear, cosine, WSD, constant.

For the model of params.yaml on two cores with matrix units a step of fused AdamW takes 1.5 ms, of Adafactor 9, of Muon
22, beside some 90 for all of a training step; on slower ones without 3, 15 and 46 (`python -m benchmarks.optimizers`).
"""

from collections.abc import Callable, Iterator
from inspect import unwrap
from math import cos, pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.transformer.attention import Attention
from lightning_modules.transformer.layers import FeedForward
from lightning_modules.transformer.lora import LoraLinear


def _left(step: float, start: float, steps: int) -> float:
    """Share still ahead of a descent that begins at `start` and ends with the last step."""
    return max(steps - step, 0) / max(steps - start, 1)


STABLE = 0.8  # share of all steps after which `wsd` descends
SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    # The 2017 paper's, section 5.3, scaled to reach 1 at the end of the warm-up.
    "inverse_sqrt": lambda step, warmup, steps: (warmup / step) ** 0.5,
    "linear": _left,
    # Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts, down to 0.
    "cosine": lambda step, warmup, steps: (1 - cos(pi * _left(step, warmup, steps))) / 2,
    # Warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395, section 4; here the decay is a line to 0.
    "wsd": lambda step, warmup, steps: min(_left(step, max(warmup, STABLE * steps), steps), 1.0),
    "constant": lambda step, warmup, steps: 1.0,
}


def learning_rate_share(schedule: str, step: int, warmup: int, steps: int) -> float:
    """Share of the highest learning rate at `step` (from 0): a linear warm-up, then the schedule's descent."""
    step, warmup = step + 1, max(warmup, 1)
    return step / warmup if step <= warmup else SCHEDULES[schedule](step, warmup, steps)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with β = (0.9, 0.98), the 2017 paper's."""
    return _adamw(_groups(model, weight_decay), learning_rate)


def muon(model: nn.Module, learning_rate: float, weight_decay: float) -> "MuonAndAdamW":
    """Muon for the matrices inside the blocks, `adamw` for all else: embeddings, heads, norms, biases, positions.

    And for LoRA's updates, where the matrices are frozen.
    """
    matrices = _matrices(model)
    decayed, kept = _groups(model, weight_decay)
    decayed["params"] = [weight for weight in decayed["params"] if weight not in matrices]
    by_muon = {"params": list(matrices), "lr": learning_rate, "weight_decay": weight_decay, "momentum": 0.95}
    return MuonAndAdamW(by_muon, list(matrices.values()), _adamw([decayed, kept], learning_rate))


def adafactor(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Adafactor:
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5), which keeps sums of rows and columns.

    The learning rate is relative: a step changes a tensor by that share of its root mean square (of 0.001 where that is
    less), and at step t by no more than 1/√t, whatever the schedule: 0.01, the paper's, is only capped after 10,000.
    """
    return torch.optim.Adafactor(_groups(model, weight_decay), lr=learning_rate)


OPTIMIZERS: dict[str, Callable[[nn.Module, float, float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
    "adafactor": adafactor,
}


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimisers as one, so that schedule, clipping and checkpoints, which know of one, cover both.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the
    nearest orthogonal one, near enough. Times 0.2·√(longer side) its steps are about as long as AdamW's, so one
    learning rate and decay serves both (Liu et al. 2025, arXiv:2502.16982, section 2.2). Matrices that are stored as
    one are made orthogonal each by itself, as Jordan advises.
    """

    def __init__(self, by_muon: dict[str, Any], parts: list[int], by_adamw: torch.optim.AdamW) -> None:
        """`by_muon`: Muon's group; `parts`: how many matrices each of its weights holds, one upon the other."""
        super().__init__([by_muon, *by_adamw.param_groups], {})
        self._parts, self._by_adamw = parts, by_adamw

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Both steps, on groups and state that are this optimiser's own. Returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_muon, *others = self.param_groups
        rate, decay, inertia = by_muon["lr"], by_muon["weight_decay"], by_muon["momentum"]
        for matrix, gradient, momentum in self._matrices(by_muon["params"]):
            momentum.lerp_(gradient, 1 - inertia)
            direction = _orthogonal(gradient.lerp(momentum, inertia))  # Nesterov's
            matrix.mul_(1 - rate * decay).add_(direction, alpha=-rate * 0.2 * sqrt(max(matrix.shape)))
        self._by_adamw.param_groups, self._by_adamw.state = others, self.state
        self._by_adamw.step()
        return loss

    def _matrices(self, weights: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each matrix, its gradient and its momentum; none of weights without a gradient."""
        for weight, parts in zip(weights, self._parts, strict=True):
            if weight.grad is None:
                continue
            if weight not in self.state:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            stored = (weight.detach(), weight.grad, self.state[weight]["momentum_buffer"])
            yield from zip(*(tensor.chunk(parts) for tensor in stored), strict=True)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix but for singular values that are only near 1: five of Jordan's Newton-Schulz steps.

    As `torch.optim.Muon` makes it, but in bf16 only where that is fast: on a CPU without matrix units it takes dozens
    of times as long as fp32 (`python -m benchmarks.optimizers`).
    """
    half = matrix.is_cuda or torch.cpu._is_amx_tile_supported()
    wide = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix).to(torch.bfloat16 if half else torch.float32)
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class _AdamW(torch.optim.AdamW):
    # Torch's own tells its compiler before each step not to look into it, and loads it for that: 2.5 s.
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


for _method in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):  # these do the same
    _inner = unwrap(getattr(torch.optim.Optimizer, _method))
    setattr(_inner, "__dynamo_disable", _inner)


def _adamw(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.AdamW:
    return _AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters in two groups. Only what multiplies decays: no norm, bias or table of vectors."""
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    updated = [module for module in model.modules() if isinstance(module, LoraLinear)]
    decayed += [update for module in updated for update in (module.lora_a_RI, module.lora_b_OR)]
    matrices = {id(weight) for weight in decayed}
    kept = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _matrices(model: nn.Module) -> dict[Tensor, int]:
    """The weights inside the blocks and how many matrices each holds: keys and values are two, gated inner ones too."""
    found: dict[Tensor, int] = {}
    for part in model.modules():
        if isinstance(part, Attention):
            found |= {part.query.weight: 1, part.key_value.weight: 2, part.output.weight: 1}
        elif isinstance(part, FeedForward):
            found |= {part.inner.weight: 2 if part.gated else 1, part.outer.weight: 1}
    return found
