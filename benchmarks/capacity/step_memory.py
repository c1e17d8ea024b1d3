"""Memory of a training step of both generators on a GPU, counted on any machine: how many images fit into 40 GB?

    python -m benchmarks.capacity.step_memory [--config conf/imagenet_d16.yaml] [--memory-gb 40] [key=value ...]

A forward and a backward pass of all stages of one image, and of two, run on fake tensors, which have sizes and no
numbers, under bfloat16 autocast. Counted are the storages that are alive, each once: what autograd keeps, and what
comes and goes while it works. Two images tell what each takes; more take so much more (nvg/training/micro_batch.py
measures the same two passes on the GPU). Weights, gradients, moments and averages are 20 bytes a parameter.

What a GPU computes otherwise than a CPU is put in its place: rotation in real numbers, attention that keeps its output
and a number a row. Blocks are not compiled. Left out: the allocator's gaps, workspaces of libraries, CUDA itself (about
1 GB), DDP's buckets (4 bytes a parameter).
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from benchmarks.capacity.training_cost import RELEASED, table
from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.describe import parameters
from nvg.generator import ContentGenerator, StructureGenerator, block
from nvg.generator.rope import rotate_in_real_numbers
from nvg.granularity import GranularitySequence
from nvg.training.generator_loss import Generators
from nvg.training.micro_batch import SHARE, parts_of

RESIDENT_BYTES = 20  # a parameter: weights, gradients, two moments, average, float32


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made within: those alive, and the most there were at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in before | self._known:
                self._add(one.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.bytes += size
        self.most = max(self.most, self.bytes)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within, blocks rotate and attend as on a GPU, and repeated passes restore no state of random numbers, of which
    blocks draw none."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)[0]

    with (
        mock.patch.object(block, "rotate", rotate_in_real_numbers),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend),
        mock.patch.object(block, "checkpoint", partial(checkpoint, preserve_rng_state=False)),
    ):
        yield


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step: of the training at rest, and of a pass of some images."""

    resident: int
    fixed: int  # of a pass, whatever its images
    each: int  # of an image
    saved: int  # of `each`, by autograd for the backward pass

    def of(self, images: int) -> int:
        """Bytes of a step that computes a number of images at once."""
        return self.resident + self.fixed + images * self.each

    def most(self, memory: float) -> int:
        """How many images fit at once, by the rule of nvg/training/micro_batch.py; 0 where none does."""
        return max(0, int((SHARE * (memory - self.resident) - self.fixed) / self.each))


def generators(config: Config) -> Generators:
    """Both generators of a configuration, in training, with gradients."""
    quantizer = Autoencoder(config.tokenizer).quantizer.requires_grad_(False)
    content, structure = ContentGenerator(config.content), StructureGenerator(config.structure)
    both = Generators(content, structure, quantizer, config.train, config.repa.weight)
    for part in (content, structure):
        part.backbone.gradient_checkpointing = config.train.gradient_checkpointing
    for weight in both.parameters():
        weight.grad = torch.zeros_like(weight)
    return both


def loss_of(both: Generators, config: Config, images: int, draws: dict[str, Tensor]) -> Tensor:
    """The loss of some images of zeros, under autocast. draws: of `Generators.draw`."""
    positions, repa = config.tokenizer.positions, config.repa
    content = torch.zeros(images, 2 * positions - 1, dtype=torch.int64)
    sequence = GranularitySequence.from_flat(torch.arange(positions).repeat(images, 1), content)
    features = torch.zeros(images, positions, repa.feature_width) if repa.weights is not None else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return both(sequence, torch.zeros(images, dtype=torch.int64), draws, features)[0]


def pass_bytes(both: Generators, config: Config, images: int, mode: FakeTensorMode | None = None) -> tuple[int, int]:
    """The most bytes that are alive at a time in a pass of some images, and those after its forward half. mode: of
    generators that are fake."""
    draws = both.draw(images, torch.Generator().manual_seed(0))
    with mode or nullcontext(), as_on_a_gpu(), Alive() as alive:
        if mode is not None:
            draws = {name: mode.from_tensor(value) for name, value in draws.items()}
        loss = loss_of(both, config, images, draws)
        kept = alive.bytes
        loss.backward()
        return alive.most, kept


def step_memory(config: Config) -> StepMemory:
    """The memory of a training step of a configuration."""
    with FakeTensorMode() as mode:
        both = generators(config)
    (one, one_kept), (two, two_kept) = (pass_bytes(both, config, images, mode) for images in (1, 2))
    each = two - one
    return StepMemory(RESIDENT_BYTES * parameters(both), one - each, each, two_kept - one_kept)


def report(path: str, settings: list[str], memory_gb: float) -> str:
    """The table: tokens by gradient checkpointing."""
    rows = []
    for tokens, more in (("clusters", ()), ("positions", RELEASED)):
        for checkpointing in (False, True):
            change = f"train.gradient_checkpointing={str(checkpointing).lower()}"
            config = configuration.load(path, [*more, *settings, change])
            found, whole = step_memory(config), config.train.batch_size // config.cluster.num_workers
            most = found.most(memory_gb * 1e9)
            rows.append(
                [
                    tokens,
                    "on" if checkpointing else "off",
                    *(f"{value / 1e9:.2f}" for value in (found.resident, found.fixed, found.each, found.saved)),
                    f"{found.of(whole) / 1e9:,.0f}",
                    f"{most}",
                    f"{whole} / {parts_of(whole, most)}" if most else "none",
                ]
            )
    images = config.train.batch_size // config.cluster.num_workers
    return table(
        "tokens | gradient checkpointing | at rest, GB | a pass, GB | and an image, GB | of it kept by autograd, GB | "
        f"{images} images, GB | images that fit into {memory_gb:g} GB at once | micro-batches",
        rows,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the configuration")
    parser.add_argument("--config", default="conf/imagenet_d16.yaml")
    parser.add_argument("--memory-gb", type=float, default=40.0, help="of a GPU (%(default)s)")
    arguments = parser.parse_args()
    print(report(arguments.config, arguments.settings, arguments.memory_gb))


if __name__ == "__main__":
    main()
