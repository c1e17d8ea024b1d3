"""Data parallelism, put on a module from outside: copies (DDP) or slices of its weights (FSDP2) on the workers.

A sliced module's tensors are DTensors, split by rows: of n rows worker r of w has r * ceil(n / w) and the next ones, at
most ceil(n / w). The models know of neither: training, averages and checkpoints use the functions here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nvg.generator.block import Block

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Wrap = Callable[[nn.Module, str], nn.Module]  # (module, "ddp" or "fsdp") -> the module to call


def workers() -> int:
    """How many workers train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def alone(module: nn.Module, how: str = "ddp") -> nn.Module:
    """The `Wrap` of a single worker: the module as it is."""
    return module


def parallelize(module: nn.Module, how: str) -> nn.Module:
    """The module as all workers of torch's process group call it, on the device where its weights are.

    ddp: every worker has all weights. fsdp: weights, gradients, moments and averages are split over the workers, the
    weights of a transformer block gathered while it computes (PyTorch's fully_shard).
    """
    if distributed.get_world_size() == 1:
        return module
    if how == "ddp":
        for weight in module.parameters():
            weight.register_hook(plain_strides)
        # Buffers are constants or the same on every worker: no need to send them with each pass.
        return DistributedDataParallel(module, forward_sync_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(module.parameters()).device.type, (distributed.get_world_size(),))
    for block in [child for child in module.modules() if isinstance(child, Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)  # in place
    return module


def plain_strides(gradient: Tensor) -> Tensor:
    """The same numbers with a new tensor's strides: a 1x1 convolution's gradient has others on its axes of one element,
    which DDP takes for another layout, copies and warns of."""
    return gradient.reshape(-1).view(gradient.shape)


def exchange_gradients(module: nn.Module, now: bool) -> None:
    """Have the next backward pass exchange gradients or not: a step does so once, after its last slice."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = now
    elif is_split(next(module.parameters())):
        sliced: Any = module  # an FSDPModule
        sliced.set_requires_gradient_sync(now)


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor.

    To import DTensor takes longer than torch itself (sympy comes with it), and readers, encoders and replicas, which
    split nothing, would each pay: where nobody imported it, nothing is one.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def shards(module: nn.Module) -> int:
    """Among how many workers a module's weights are split."""
    return max((weight.device_mesh.size() for weight in module.parameters() if is_split(weight)), default=1)


def local(tensor: Tensor) -> Tensor:
    """This worker's rows of a DTensor, sharing memory; another tensor as it is."""
    return tensor.to_local() if is_split(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A DTensor gathered from all workers, each of which must ask; another tensor as it is."""
    return tensor.full_tensor() if is_split(tensor) else tensor


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Set a tensor from a whole one that every worker has."""
    if is_split(target):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    local(target).copy_(local(value))


def local_rows(tensor: Tensor) -> range | None:
    """The rows of the whole DTensor that this worker has; None for another tensor."""
    if not is_split(tensor):
        return None
    most = math.ceil(tensor.shape[0] / tensor.device_mesh.size())
    start = min(tensor.device_mesh.get_local_rank() * most, tensor.shape[0])
    return range(start, min(start + most, tensor.shape[0]))
