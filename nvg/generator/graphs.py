"""CUDA graphs of the sampler: what a stage starts on the device, hundreds of kernels, the host starts at once.

torch.compile(mode="reduce-overhead") makes a graph of every compiled function, a dozen for a stage, which copy their
inputs and outputs, record in a second or third call, and serve only the thread that recorded them
(torch/_inductor/cudagraph_trees.py keeps them thread-local). These hold all that runs between a stage's inputs and its
outputs, compiled or not, are complete after one call, and any thread replays them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARM_UPS = 2  # runs before a recording: what compiles, loads kernels or chooses an algorithm cannot be recorded
RECORDING = threading.Lock()  # CUDA records one graph at a time in a process


class Recorded(NamedTuple):
    """A function's graph: it reads `inputs` and writes `outputs`, always in the same memory."""

    replay: Callable[[], None]
    inputs: Sequence[Tensor]
    outputs: Any


class Graphs:
    """The graphs of a sampler, by key. They hold the weights' memory: moved weights need new graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._recorded: dict[Hashable, Recorded] = {}
        self._lock = threading.Lock()  # one run at a time: all use the same memory
        self._stream: torch.cuda.Stream | None = None  # of all recordings
        self._pool: Any = None  # of the memory that they share

    def run(self, key: Hashable, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments) by the key's graph, which the first call records. Results are copies of the graph's.

        Of the arguments, trees, the tensors may differ between calls with one key, in their numbers; what the function
        reads besides must be the same. Nothing in it may wait for the device.
        """
        with self._lock:
            if key not in self._recorded:
                own = pytree.tree_map_only(Tensor, torch.clone, arguments)
                outputs, replay = self.record(lambda: function(*own))
                self._recorded[key] = Recorded(replay, tensors_of(own), outputs)
            recorded = self._recorded[key]
            copy_together(tensors_of(arguments), recorded.inputs)
            recorded.replay()
            return pytree.tree_map_only(Tensor, torch.clone, recorded.outputs)

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """The outputs that a replay of the function writes again, and the replay."""
        with torch.cuda.device(self.device):
            if self._stream is None:
                self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    function()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Another thread may draw with another sampler meanwhile, which the mode "global" would forbid.
            with RECORDING, torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = function()
        return outputs, graph.replay


def graphs_on(device: torch.device) -> Graphs | None:
    """An empty collection of graphs on a CUDA device; None elsewhere."""
    return Graphs(device) if device.type == "cuda" else None


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in its order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def copy_together(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Copy tensors into others of the same shapes: one kernel for all of a dtype."""
    pairs = defaultdict[torch.dtype, list[tuple[Tensor, Tensor]]](list)
    for value, place in zip(values, into, strict=True):
        pairs[value.dtype].append((place, value))
    for some in pairs.values():
        places, numbers = zip(*some, strict=True)
        torch._foreach_copy_(list(places), list(numbers))
