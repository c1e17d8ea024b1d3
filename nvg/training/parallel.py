"""Data parallelism, put on a module from outside: copies (DDP) or slices of its weights (FSDP2) on the workers.

A sliced module's tensors are DTensors, split by rows: of n rows worker r of w has r * ceil(n / w) and the next ones, at
most ceil(n / w). The models know of neither: training, averages and checkpoints use the functions here.

Where autocast computes in bfloat16, a sliced module's gradients are sent in bfloat16, and its blocks' weights are
gathered in it. Autocast would round a block's weights all the same, so what it computes is the same, to the last bit;
and keeps no rounded copy of each weight until the backward pass. What is outside of the blocks (embeddings, heads) is
gathered in float32, for the hidden states take its dtype. Weights, gradients, moments and averages at rest are float32.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Protocol, TypeGuard

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nvg.generator.block import Block

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Wrap(Protocol):
    """Data parallelism by its name, "ddp" or "fsdp", put on a module that autocast computes in `dtype`."""

    def __call__(self, module: nn.Module, how: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module to call."""


def workers() -> int:
    """How many workers train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def alone(module: nn.Module, how: str = "ddp", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The `Wrap` of a single worker: the module as it is."""
    return module


def parallelize(module: nn.Module, how: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module as all workers of torch's process group call it, on the device where its weights are.

    ddp: every worker has all weights. fsdp: weights, gradients, moments and averages are split over the workers, the
    weights of a transformer block gathered while it computes (PyTorch's fully_shard). dtype: of autocast; fsdp sends
    gradients and the blocks' weights in it.
    """
    if distributed.get_world_size() == 1:
        return module
    if how == "ddp":
        for weight in module.parameters():
            weight.register_hook(plain_strides)
        # Buffers are constants or the same on every worker: no need to send them with each pass.
        return DistributedDataParallel(module, forward_sync_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs keep their dtype: the hidden states between blocks are float32, as without a policy.
    of_blocks = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype, cast_forward_inputs=False)
    of_the_rest = MixedPrecisionPolicy(reduce_dtype=dtype, cast_forward_inputs=False)
    mesh = init_device_mesh(next(module.parameters()).device.type, (distributed.get_world_size(),))
    for block in [child for child in module.modules() if isinstance(child, Block)]:
        fully_shard(block, mesh=mesh, mp_policy=of_blocks)
    fully_shard(module, mesh=mesh, mp_policy=of_the_rest)  # in place
    return module


def plain_strides(gradient: Tensor) -> Tensor:
    """The same numbers with a new tensor's strides: a 1x1 convolution's gradient has others on its axes of one element,
    which DDP takes for another layout, copies and warns of."""
    return gradient.reshape(-1).view(gradient.shape)


def exchange_gradients(module: nn.Module, now: bool) -> None:
    """Have the next backward pass exchange gradients or not: with ddp a step does so once, after its last slice.

    With fsdp every pass does, whatever is asked: it gathers the weights anyway. Each worker then holds the gradients of
    its own rows alone, and their sum over the passes is float32; torch would keep all gradients in the dtype in which
    they are sent.
    """
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = now


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
