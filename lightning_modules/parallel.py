"""One model on several devices: sharded (FSDP2), split (tensor parallelism), or both; applied from outside the model.

Sharded, a device keeps 1/N of weights, gradients and optimiser state, and gathers a block when it is needed: twice the
traffic of DDP for a model that need not fit one device. Split (`tensor_parallel`), the devices of a node share
each layer's work on the same batch, and nodes are sharded over each other. Checkpoints and models that are saved are
whole, in one file, the same as those of one process: any number of devices, by any strategy, can go on from them.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.errors import PipelineError
from lightning_modules.lightning import pl
from lightning_modules.model_folder import Model
from lightning_modules.tensor_parallel import group_of, require_divisible, split_model, splits
from lightning_modules.transformer.config import TransformerConfig
from lightning_modules.transformer.heads import Classifier, SpanReader
from lightning_modules.transformer.layers import Block

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SHARDED = ("fsdp", "tensor_parallel")


class Sharded(pl.strategies.ModelParallelStrategy):
    """Data parallelism with sharded state over all devices; `split`: over the nodes, and each node's share a model.

    The LightningModule must call `parallelise` in its `configure_model`, the trainer validate without inference mode.
    """

    def __init__(self, split: bool) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.split = split

    def setup_environment(self) -> None:
        """Lays out the devices: (groups that read different batches) × (devices that share one)."""
        self._tensor_parallel_size = self.num_processes if self.split else 1
        self._data_parallel_size = self.num_nodes * self.num_processes // self._tensor_parallel_size
        super().setup_environment()

    def parallelise(self, model: Model, bf16: bool) -> None:
        """Shards or splits a model, the same on every rank, in place. A second call does nothing."""
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        if isinstance(model, FSDPModule) or group_of(model) is not None:
            return
        if self.split:
            split_model(model, model.config, self.device_mesh["tensor_parallel"].get_group())
        mesh = self.device_mesh["data_parallel"]
        if self.split and mesh.size() == 1:
            return
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None,
            reduce_dtype=torch.float32 if bf16 else None,
            cast_forward_inputs=False,  # autocast does it where it should be done
        )
        for part in [*(module for module in model.modules() if isinstance(module, Block)), model]:
            # The root too is given up after use: whoever changes weights between steps changes the shards alone.
            fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        if not isinstance(model, SpanReader | Classifier):  # which do all in its `forward`
            register_fsdp_forward_method(model, "logits")
            register_fsdp_forward_method(model, "cross_entropy")

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether `load_optimizer_state_dict` is called."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights; empty but on rank 0."""
        assert self.lightning_module is not None
        return whole_state(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole state, as the optimiser of one process has it; empty but on rank 0."""
        assert self.lightning_module is not None
        layout, names = _Layout(self.lightning_module), _names(self.lightning_module, optimizer)
        state: dict[str, Any] = optimizer.state_dict()
        whole = {n: {k: layout.whole(names[n], v) for k, v in values.items()} for n, values in state["state"].items()}
        return state | {"state": whole} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A whole checkpoint, of which each rank reads no more from disk than it uses."""
        loaded: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        return loaded

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this rank's share of whole weights."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(own_shares(self.lightning_module, checkpoint["state_dict"]), strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this rank's share of whole state."""
        assert self.lightning_module is not None
        layout = _Layout(self.lightning_module)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = _names(self.lightning_module, optimizer)
            own = {n: {k: layout.own(names[n], v) for k, v in values.items()} for n, values in state["state"].items()}
            optimizer.load_state_dict({**state, "state": own})


def make_strategy(name: str) -> str | pl.strategies.Strategy:
    """What the Trainer takes for `auto`, `ddp`, `fsdp` or `tensor_parallel`."""
    return Sharded(split=name == "tensor_parallel") if name in SHARDED else name


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether a device holds but a share of the model that is trained."""
    return isinstance(trainer.strategy, Sharded)


def require_possible(trainer: pl.Trainer, config: TransformerConfig, optimizer: str) -> None:
    """Raises PipelineError where the strategy can split neither such a model nor such an optimiser's state."""
    if not isinstance(trainer.strategy, Sharded):
        return
    name = "tensor_parallel" if trainer.strategy.split else "fsdp"
    if optimizer != "adamw":
        raise PipelineError(
            f"strategy {name} keeps a share of each matrix on each device, and {optimizer} needs whole ones: use "
            "optimizer adamw, or strategy ddp"
        )
    if trainer.strategy.split:
        require_divisible(config, trainer.num_devices)


def parallelise(module: pl.LightningModule, model: Model) -> None:
    """Shards or splits `model` in place where the trainer's strategy says so. For `configure_model`."""
    strategy = module.trainer.strategy
    if isinstance(strategy, Sharded):
        strategy.parallelise(model, bf16=module.trainer.precision == "bf16-mixed")


def data_rank(trainer: pl.Trainer) -> tuple[int, int]:
    """(Which share of a batch this process reads, how many there are): ranks that split a model read the same."""
    if not isinstance(trainer.strategy, Sharded):
        return trainer.global_rank, trainer.world_size
    mesh = trainer.strategy.device_mesh["data_parallel"]
    return mesh.get_local_rank(), mesh.size()


def clip_gradient(model: nn.Module, longest: float) -> Tensor:
    """Shortens a gradient longer than `longest`; returns its length before, over all shares of all ranks."""
    shares, group = splits(model), group_of(model)
    split: list[nn.Parameter] = []
    whole: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            (split if group is not None and name in shares else whole).append(parameter)
    norm = _norm(whole)
    if group is not None:
        squares = _norm(split).square().to(next(model.parameters()).device)  # without gradients it is on the CPU
        dist.all_reduce(squares, group=group)
        norm = (norm.square() + squares).sqrt()
    # One that is not finite is left as it is, for the guard to say where: shortened, all of it would be NaN.
    finite = torch.nan_to_num(norm, nan=0.0, posinf=0.0)
    torch.nn.utils.clip_grads_with_norm_([*whole, *split], longest, finite)
    return norm


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if _is_sharded(norm) else norm


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """`model.state_dict()`, whole. All ranks must call it; of a sharded or split model rank 0 alone gets it, on CPU."""
    return whole_tensors(model, model.state_dict())


def whole_tensors(model: nn.Module, shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of any tensors like the model's, local parts or not (averaged weights, say), by the names of its own."""
    layout = _Layout(model)
    if not layout.shared:
        return dict(shares)
    whole = {name: layout.whole(name, share) for name, share in shares.items()}
    return whole if dist.get_rank() == 0 else {}


def own_shares(model: nn.Module, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of whole tensors like the model's, by the names that its own have: what is this rank's."""
    layout = _Layout(model)
    return {name: layout.own(name, tensor) for name, tensor in whole.items()}


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this device: memory that it shares, for operations that know no sharded tensors."""
    tensor = tensor.detach()
    return tensor.to_local() if _is_sharded(tensor) else tensor


def _is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    module = sys.modules.get("torch.distributed.tensor")  # 1.5 s, which who has no such tensor does not wait for
    return module is not None and isinstance(tensor, module.DTensor)


class _Layout:
    """Which share of each of a model's tensors is on which rank."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors, self.group = model.state_dict(), group_of(model)
        self.splits = {} if self.group is None else splits(model)
        self.shared = self.group is not None or any(map(_is_sharded, self.tensors.values()))

    def whole(self, name: str, share: Any) -> Any:
        """The whole of what is like the tensor `name`, on CPU on rank 0; single numbers as they are."""
        if not isinstance(share, Tensor) or not share.ndim:
            return share
        tensor, like = share.detach(), self.tensors[name]
        if _is_sharded(like):
            from torch.distributed.tensor import DTensor

            if not isinstance(tensor, DTensor):
                tensor = DTensor.from_local(
                    tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
                )
            tensor = tensor.full_tensor()
        if self.group is not None and name in self.splits:
            tensor = self.splits[name].join(tensor, self.group)
        return tensor.cpu().contiguous() if dist.get_rank() == 0 else tensor.new_empty(0)

    def own(self, name: str, whole: Any) -> Any:
        """The reverse."""
        if not isinstance(whole, Tensor) or not whole.ndim:
            return whole
        if self.group is not None and name in self.splits:
            whole = self.splits[name].share(whole, dist.get_rank(self.group), dist.get_world_size(self.group))
        like = self.tensors[name]
        if _is_sharded(like):
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        return whole


def _names(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of an optimiser's parameters, in the order in which its state numbers them."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
